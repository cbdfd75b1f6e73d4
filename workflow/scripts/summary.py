"""Write the short summary that a run ends with."""

import json
from typing import Any

from oaem.config.schema import parse
from oaem.evaluation.metrics import load_metrics
from oaem.presentation.report import summary
from oaem.runtime.atomic import write_text
from oaem.runtime.jobs import run_job


def work(snakemake: Any) -> None:
    config = parse(json.loads(snakemake.params.settings))
    write_text(snakemake.output.text, summary(load_metrics([snakemake.input.metrics]), config))


if "snakemake" in globals():
    run_job(snakemake, work)
