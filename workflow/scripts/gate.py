"""Stop a grid whose unquantised model does not have the perplexity that it should, before money is spent."""

from typing import Any

from oaem.evaluation.gate import check
from oaem.runtime.atomic import read_json, write_json
from oaem.runtime.jobs import run_job


def work(snakemake: Any) -> None:
    rows = read_json(snakemake.input.metrics)["metrics"]
    measured = {row["dataset"]: row["value"] for row in rows if row["metric"] == "perplexity"}
    expected = dict(snakemake.params.expected)
    check(snakemake.wildcards.model, measured, expected, float(snakemake.params.tolerance))
    write_json(snakemake.output.gate, {"expected": expected, "measured": measured})


if "snakemake" in globals():
    run_job(snakemake, work)
