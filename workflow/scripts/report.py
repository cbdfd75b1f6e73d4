"""Write the self-contained report."""

import json
from os.path import commonpath
from pathlib import Path
from typing import Any

from oaem.config.schema import parse
from oaem.evaluation.metrics import load_metrics
from oaem.presentation.report import render
from oaem.runtime import provenance
from oaem.runtime.atomic import write_text
from oaem.runtime.jobs import run_job


def work(snakemake: Any) -> None:
    config, paper = parse(json.loads(snakemake.params.settings)), Path(commonpath(snakemake.input.paper))
    metrics = load_metrics([snakemake.input.metrics])
    write_text(snakemake.output.html, render(metrics, config, paper, provenance.collect("cpu")))


if "snakemake" in globals():
    run_job(snakemake, work)
