"""PV-tune one run, going on where an earlier attempt stopped."""

import json
import math
from pathlib import Path
from typing import Any

from oaem.config.grid import Run
from oaem.evaluation.metrics import Metric, memory_metrics, write_metrics
from oaem.pv.job import Tuning, tune_run
from oaem.runtime import provenance
from oaem.runtime.atomic import write_json
from oaem.runtime.devices import peak_memory
from oaem.runtime.jobs import job_devices, run_job
from oaem.runtime.locks import alone_in


def work(snakemake: Any) -> None:
    run, settings = Run.parse(snakemake.wildcards.run), json.loads(snakemake.params.settings)
    manifest = Path(snakemake.output.manifest)
    folder, gpus = manifest.parent.parent, settings["pv"]["gpus"]
    tuning = Tuning(
        run=run.path,
        settings=settings,
        model=str(snakemake.input.model),
        blocks=str(folder / "blocks"),
        tokens=[str(path) for path in snakemake.input.tokens],
        folder=str(manifest.parent),
        code=str(snakemake.params.code),
    )
    threads = max(1, snakemake.threads // gpus)
    with alone_in(folder), job_devices(settings["device"], threads, gpus) as devices:
        result = tune_run(tuning, devices, threads, Path(snakemake.log[0]))
        peak_bytes = peak_memory(devices[0]) if gpus == 1 else None  # several ranks are processes of their own
        made_by = provenance.collect(devices[0], settings=settings, code=snakemake.params.code, seed=run.seed)
    seconds = {**result["seconds"], "total": math.fsum(result["seconds"].values())}
    several = {"gpus": gpus} if gpus > 1 else {}
    metrics = [
        Metric(run.model, "pv_tuning", phase, "seconds", spent, run, protocol=several)
        for phase, spent in sorted(seconds.items())
    ]
    metrics += memory_metrics(run, "pv_tuning", peak_bytes)
    write_metrics(snakemake.output.metrics, metrics, made_by)
    write_json(manifest, {**result, "provenance": made_by})


if "snakemake" in globals():
    run_job(snakemake, work)
