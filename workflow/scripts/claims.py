"""Decide the paper's claims on its numbers and on ours."""

import json
from os.path import commonpath
from pathlib import Path
from typing import Any

from oaem.config.schema import parse
from oaem.evaluation.metrics import load_metrics
from oaem.measurements.table import write_csv
from oaem.presentation.claims.claims import build
from oaem.runtime.jobs import run_job


def work(snakemake: Any) -> None:
    config, paper = parse(json.loads(snakemake.params.settings)), Path(commonpath(snakemake.input.paper))
    write_csv(snakemake.output.csv, build(load_metrics([snakemake.input.metrics]), config, paper))


if "snakemake" in globals():
    run_job(snakemake, work)
