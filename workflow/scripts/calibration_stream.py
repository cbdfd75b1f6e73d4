"""Store the inputs of every block of the unquantised model, going on where an earlier attempt stopped."""

import json
from pathlib import Path
from typing import Any

from oaem.calibration.stream import make_stream, stream_facts
from oaem.corpora.tokens import read_tokens
from oaem.runtime.atomic import write_json
from oaem.runtime.jobs import job_device, run_job
from oaem.runtime.locks import alone_in
from oaem.runtime.provenance import collect
from oaem.runtime.temporary import sweep


def work(snakemake: Any) -> None:
    settings, code = json.loads(snakemake.params.settings), str(snakemake.params.code)
    model, tokens = Path(snakemake.input.model), Path(snakemake.input.tokens)
    manifest = Path(snakemake.output.manifest)
    with alone_in(manifest.parent), job_device(settings["device"], snakemake.threads) as device:
        facts = stream_facts(settings, model, tokens, device, code)
        made_by = collect(device, settings=settings, code=code, seed=int(snakemake.wildcards.seed))
        sums = make_stream(model.parent / "hf", read_tokens(tokens)[0], manifest.parent, facts["fingerprint"], device)
        sweep(manifest.parent)
    write_json(manifest, {**facts, "sums": sums, "provenance": made_by})


if "snakemake" in globals():
    run_job(snakemake, work)
