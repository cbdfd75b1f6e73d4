"""Build one table of the paper, as data and as text."""

import json
from os.path import commonpath
from pathlib import Path
from typing import Any

from oaem.config.schema import parse
from oaem.evaluation.metrics import load_metrics
from oaem.measurements.table import write_csv
from oaem.presentation.tables.build import build
from oaem.presentation.tables.markdown import render
from oaem.runtime.atomic import write_text
from oaem.runtime.jobs import run_job


def work(snakemake: Any) -> None:
    config, paper = parse(json.loads(snakemake.params.settings)), Path(commonpath(snakemake.input.paper))
    name = snakemake.wildcards.table
    metrics = load_metrics(snakemake.input.metrics)
    write_csv(snakemake.output.csv, build(name, metrics, config, paper))
    write_text(snakemake.output.markdown, render(name, metrics, config, paper))


if "snakemake" in globals():
    run_job(snakemake, work)
