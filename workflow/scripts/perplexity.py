"""Perplexity of one model on every text domain."""

import json
from pathlib import Path
from typing import Any

from oaem.corpora.tokens import read_tokens
from oaem.evaluation.perplexity import perplexity
from oaem.grid import Run
from oaem.metrics import Metric, write_metrics
from oaem.runtime import provenance
from oaem.runtime.jobs import job_device, run_job
from oaem.runtime.progress import Progress
from oaem.stages import assemble


def work(snakemake: Any) -> None:
    settings, subject = json.loads(snakemake.params.settings), snakemake.wildcards.subject
    run = Run.parse(subject) if subject.startswith("runs/") else None
    metrics = []
    with job_device(settings["device"], snakemake.threads) as device:
        model = assemble(subject, snakemake.wildcards.stage, Path(snakemake.input.model), device)
        sets = [read_tokens(Path(path)) for path in snakemake.input.tokens]
        progress = Progress(f"{subject} perplexity", sum(len(tokens) for tokens, _ in sets))
        for (name, domain), (tokens, protocol) in zip(settings["domains"].items(), sets, strict=True):
            result = perplexity(model, tokens, settings["batch_size"], device, progress)
            facts = {**protocol, "dtype": str(model.dtype), "device": provenance.device_name(device)}
            metrics.append(
                Metric(
                    model=subject.split("/")[1],
                    run=run,
                    stage=snakemake.wildcards.stage,
                    dataset=name,
                    metric="perplexity",
                    value=result.value,
                    n=result.windows,
                    role=domain["role"],
                    label=domain["label"],
                    protocol=facts,
                )
            )
        made_by = provenance.collect(device)
    write_metrics(snakemake.output.metrics, metrics, made_by)


if "snakemake" in globals():
    run_job(snakemake, work)
