"""Unite all measurements in one table."""

from pathlib import Path
from typing import Any

from oaem.evaluation.metrics import load_metrics
from oaem.measurements.table import write_csv
from oaem.runtime.jobs import run_job


def work(snakemake: Any) -> None:
    write_csv(Path(snakemake.output.csv), load_metrics(snakemake.input))


if "snakemake" in globals():
    run_job(snakemake, work)
