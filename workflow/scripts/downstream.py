"""Zero-shot tasks of one model through lm-eval."""

import json
from pathlib import Path
from typing import Any

from oaem.config.grid import Run
from oaem.evaluation.downstream import evaluate_tasks
from oaem.evaluation.metrics import Metric, write_metrics
from oaem.evaluation.stages import assemble
from oaem.models.load import load_tokenizer
from oaem.runtime import provenance
from oaem.runtime.jobs import job_device, run_job
from oaem.runtime.progress import Progress


def work(snakemake: Any) -> None:
    settings, subject = json.loads(snakemake.params.settings), snakemake.wildcards.subject
    run = Run.parse(subject) if subject.startswith("runs/") else None
    seed = run.seed if run else None
    folder = Path(snakemake.input.model)
    asked = {key: value for key, value in settings.items() if key != "device"}
    with job_device(settings["device"], snakemake.threads) as device:
        model = assemble(subject, snakemake.wildcards.stage, folder, device)
        results = evaluate_tasks(model, load_tokenizer(folder.parent / "hf"), **asked, progress=Progress)
        made_by = provenance.collect(device, settings=settings, code=snakemake.params.code, seed=seed)
    metrics = [
        Metric(
            model=subject.split("/")[1],
            run=run,
            stage=snakemake.wildcards.stage,
            dataset=result.task,
            metric=result.metric,
            value=result.value,
            stderr=result.stderr,
            n=result.n,
            role="task",
            label=result.task,
            protocol=result.protocol,
        )
        for result in results
    ]
    write_metrics(snakemake.output.metrics, metrics, made_by)


if "snakemake" in globals():
    run_job(snakemake, work)
