"""Perplexity of a run and of its greedy partner with parts of their errors exchanged, or taken away."""

import json
from pathlib import Path
from typing import Any

from oaem.corpora.tokens import read_tokens
from oaem.evaluation.error_exchange import layer_errors, measure_error_exchange
from oaem.evaluation.metrics import write_metrics
from oaem.evaluation.stages import compared, quantized_state
from oaem.models.precision import compute_dtype
from oaem.runtime import provenance
from oaem.runtime.jobs import job_device, run_job


def work(snakemake: Any) -> None:
    settings, pair = json.loads(snakemake.params.settings), compared(snakemake.wildcards.run)
    model = Path(snakemake.input.model)
    folder = model.parent / "hf"
    with job_device(settings["device"], snakemake.threads) as device:
        states = {each: quantized_state(each.path, "pre_pv", model) for each in pair}
        calibration, _ = read_tokens(Path(str(snakemake.input.calibration)))
        dtype = compute_dtype(folder, device)
        layers = layer_errors(folder, states, calibration, dtype, device)
        tokens = [Path(path) for path in snakemake.input.tokens]
        metrics = measure_error_exchange(
            folder, states, layers, settings["domains"], tokens, settings["batch_size"], dtype, device
        )
        made_by = provenance.collect(device, settings=settings, code=snakemake.params.code, seed=pair[0].seed)
    write_metrics(snakemake.output.metrics, metrics, made_by)


if "snakemake" in globals():
    run_job(snakemake, work)
