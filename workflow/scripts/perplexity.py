"""Perplexity of one model on every text domain; after PV-tuning, of each choice of an epoch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from oaem.config.grid import Run
from oaem.evaluation.domains import measure_domains
from oaem.evaluation.metrics import Metric, write_metrics
from oaem.evaluation.stages import assemble, measured_with
from oaem.runtime import provenance
from oaem.runtime.jobs import job_device, run_job


def work(snakemake: Any) -> None:
    settings, subject = json.loads(snakemake.params.settings), snakemake.wildcards.subject
    run = Run.parse(subject) if subject.startswith("runs/") else None
    seed = run.seed if run else None
    tokens = [Path(path) for path in snakemake.input.tokens]
    metrics = []
    with job_device(settings["device"], snakemake.threads) as device:
        for stage, names in measured_with(subject, snakemake.wildcards.stage).items():
            model = assemble(subject, stage, Path(snakemake.input.model), device)
            blank = Metric(subject.split("/")[1], stage, "", "perplexity", float("nan"), run)
            found = measure_domains(model, blank, settings["domains"], tokens, settings["batch_size"], device)
            metrics += [replace(row, stage=name) for row in found for name in names]
        made_by = provenance.collect(device, settings=settings, code=snakemake.params.code, seed=seed)
    write_metrics(snakemake.output.metrics, metrics, made_by)


if "snakemake" in globals():
    run_job(snakemake, work)
