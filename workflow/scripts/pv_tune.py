"""PV-tune one run, going on where an earlier attempt stopped."""

import json
import math
from pathlib import Path
from typing import Any

from oaem.config.grid import Run
from oaem.evaluation.metrics import Metric, write_metrics
from oaem.pv.job import prepare, tune_run
from oaem.runtime import provenance
from oaem.runtime.atomic import write_json
from oaem.runtime.jobs import job_device, run_job
from oaem.runtime.locks import alone_in


def work(snakemake: Any) -> None:
    run, settings = Run.parse(snakemake.wildcards.run), json.loads(snakemake.params.settings)
    manifest = Path(snakemake.output.manifest)
    with alone_in(manifest.parent.parent), job_device(settings["device"], snakemake.threads) as device:
        job = prepare(run, settings, Path(snakemake.input.model), device, str(snakemake.params.code))
        tokens = [Path(path) for path in snakemake.input.tokens]
        result = tune_run(job, manifest.parent.parent / "blocks", tokens, manifest.parent)
        made_by = provenance.collect(device, settings=settings, code=snakemake.params.code, seed=run.seed)
    seconds = {**result["seconds"], "total": math.fsum(result["seconds"].values())}
    metrics = [Metric(run.model, "pv_tuning", phase, "seconds", spent, run) for phase, spent in sorted(seconds.items())]
    write_metrics(snakemake.output.metrics, metrics, made_by)
    write_json(manifest, {**result, "provenance": made_by})


if "snakemake" in globals():
    run_job(snakemake, work)
