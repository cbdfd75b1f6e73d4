"""Quantise consecutive blocks of one run, going on where an earlier attempt stopped."""

import json
from pathlib import Path
from typing import Any

from oaem.calibration.sequential import prepare, quantize_range
from oaem.calibration.stream import Stream
from oaem.config.grid import Run
from oaem.corpora.tokens import read_tokens
from oaem.runtime.atomic import write_json
from oaem.runtime.devices import peak_memory
from oaem.runtime.jobs import job_device, run_job
from oaem.runtime.locks import alone_in


def work(snakemake: Any) -> None:
    run, settings = Run.parse(snakemake.wildcards.run), json.loads(snakemake.params.settings)
    start, stop = int(snakemake.wildcards.start), int(snakemake.wildcards.stop)
    model, tokens = Path(snakemake.input.model), Path(str(snakemake.input.tokens))
    manifest = Path(snakemake.output.manifest)
    folder = manifest.parent.parent
    original = settings["inputs"] == "original"
    # Blocks on original inputs are quantised side by side; else one job has the run's folder at a time.
    alone = alone_in(folder, manifest.stem if original else "")
    with alone, job_device(settings["device"], snakemake.threads) as device:
        stream = Stream.open(Path(snakemake.input.stream[0])) if snakemake.input.stream else None
        job = prepare(run, settings, model, tokens, device, str(snakemake.params.code), stream)
        reports = quantize_range(job, read_tokens(tokens)[0], start, stop, manifest.parent, folder / "activations")
        peak_bytes = peak_memory(device)
    made = {"fingerprint": job.fingerprint, "blocks": reports, "peak_bytes": peak_bytes, "provenance": job.made_by}
    write_json(manifest, made)


if "snakemake" in globals():
    run_job(snakemake, work)
