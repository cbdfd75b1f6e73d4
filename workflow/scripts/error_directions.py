"""Where the layers' errors of a run and of its greedy partner lie."""

import json
from pathlib import Path
from typing import Any

from oaem.config.grid import Run
from oaem.corpora.tokens import read_tokens
from oaem.evaluation.directions import measure_directions
from oaem.evaluation.metrics import write_metrics
from oaem.evaluation.stages import quantized_state
from oaem.models.precision import compute_dtype
from oaem.runtime import provenance
from oaem.runtime.jobs import job_device, run_job


def work(snakemake: Any) -> None:
    settings, run = json.loads(snakemake.params.settings), Run.parse(snakemake.wildcards.run)
    model = Path(snakemake.input.model)
    folder = model.parent / "hf"
    with job_device(settings["device"], snakemake.threads) as device:
        states = {each: quantized_state(each.path, "pre_pv", model) for each in (run, run.partner("greedy"))}
        tokens, _ = read_tokens(Path(str(snakemake.input.tokens)))
        metrics = measure_directions(folder, states, tokens, compute_dtype(folder, device), device)
        made_by = provenance.collect(device, settings=settings, code=snakemake.params.code, seed=run.seed)
    write_metrics(snakemake.output.metrics, metrics, made_by)


if "snakemake" in globals():
    run_job(snakemake, work)
