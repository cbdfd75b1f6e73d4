"""Perplexity of one model on every text domain; after PV-tuning, of each choice of an epoch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from oaem.corpora.tokens import read_tokens
from oaem.evaluation.perplexity import perplexity
from oaem.grid import Run
from oaem.metrics import Metric, write_metrics
from oaem.runtime import provenance
from oaem.runtime.jobs import job_device, run_job
from oaem.runtime.progress import Progress
from oaem.stages import assemble, measured_with


def measure(snakemake: Any, stage: str, names: list[str], settings: dict[str, Any], device: str) -> list[Metric]:
    """One row a domain and name: `names` are the stages at which the model is this same one."""
    subject = snakemake.wildcards.subject
    model = assemble(subject, stage, Path(snakemake.input.model), device)
    sets = [read_tokens(Path(path)) for path in snakemake.input.tokens]
    progress = Progress(f"{subject} {stage} perplexity", sum(len(tokens) for tokens, _ in sets))
    metrics = []
    for (dataset, domain), (tokens, protocol) in zip(settings["domains"].items(), sets, strict=True):
        result = perplexity(model, tokens, settings["batch_size"], device, progress)
        facts = {**protocol, "dtype": str(model.dtype), "device": provenance.device_name(device)}
        measured = Metric(
            model=subject.split("/")[1],
            run=Run.parse(subject) if subject.startswith("runs/") else None,
            stage=stage,
            dataset=dataset,
            metric="perplexity",
            value=result.value,
            stderr=result.stderr,
            n=result.windows,
            role=domain["role"],
            label=domain["label"],
            protocol=facts,
        )
        metrics += [replace(measured, stage=name) for name in names]
    return metrics


def work(snakemake: Any) -> None:
    settings, stage = json.loads(snakemake.params.settings), snakemake.wildcards.stage
    with job_device(settings["device"], snakemake.threads) as device:
        same = measured_with(snakemake.wildcards.subject, stage)
        metrics = [row for one, names in same.items() for row in measure(snakemake, one, names, settings, device)]
        made_by = provenance.collect(device)
    write_metrics(snakemake.output.metrics, metrics, made_by)


if "snakemake" in globals():
    run_job(snakemake, work)
