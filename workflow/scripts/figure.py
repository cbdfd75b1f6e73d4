"""Draw one figure."""

import json
from os.path import commonpath
from pathlib import Path
from typing import Any

from oaem.config.schema import parse
from oaem.evaluation.metrics import load_metrics
from oaem.presentation.figures.figures import FIGURES, save
from oaem.runtime.jobs import run_job


def work(snakemake: Any) -> None:
    config, paper = parse(json.loads(snakemake.params.settings)), Path(commonpath(snakemake.input.paper))
    figure = FIGURES[snakemake.wildcards.figure](load_metrics([snakemake.input.metrics]), config, paper)
    for path in (snakemake.output.svg, snakemake.output.png):
        save(figure, path)


if "snakemake" in globals():
    run_job(snakemake, work)
