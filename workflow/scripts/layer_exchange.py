"""Perplexity of a run and of its greedy partner with layers of each in the other's place."""

import json
from pathlib import Path
from typing import Any

from oaem.evaluation.exchange import measure_exchange, parts_in
from oaem.evaluation.metrics import write_metrics
from oaem.evaluation.stages import assemble, compared
from oaem.models.families import family_of
from oaem.models.load import load_config
from oaem.runtime import provenance
from oaem.runtime.jobs import job_device, run_job


def work(snakemake: Any) -> None:
    settings, pair = json.loads(snakemake.params.settings), compared(snakemake.wildcards.run)
    model = Path(snakemake.input.model)
    with job_device(settings["device"], snakemake.threads) as device:
        models = {each: assemble(each.path, "pre_pv", model, device) for each in pair}
        parts = parts_in(models[pair[0]], family_of(load_config(model.parent / "hf")))
        tokens = [Path(path) for path in snakemake.input.tokens]
        metrics = measure_exchange(models, parts, settings["domains"], tokens, settings["batch_size"], device)
        made_by = provenance.collect(device, settings=settings, code=snakemake.params.code, seed=pair[0].seed)
    write_metrics(snakemake.output.metrics, metrics, made_by)


if "snakemake" in globals():
    run_job(snakemake, work)
