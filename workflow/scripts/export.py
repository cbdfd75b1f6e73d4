"""Export one run as a folder that transformers loads with the aqlm library."""

import json
from pathlib import Path
from typing import Any

from oaem.config.grid import Run
from oaem.evaluation.stages import quantized_state
from oaem.export.folder import export
from oaem.export.model_card import CardData
from oaem.runtime import provenance
from oaem.runtime.atomic import read_json, write_json
from oaem.runtime.jobs import run_job


def work(snakemake: Any) -> None:
    run, stage = Run.parse(snakemake.wildcards.run), snakemake.wildcards.stage
    manifest, model = Path(snakemake.output.manifest), Path(snakemake.input.model)
    facts = json.loads(snakemake.params.card)
    rows = [row for path in snakemake.input.metrics for row in read_json(path)["metrics"]]
    card = CardData(run, facts["label"], facts["base"], stage, facts["settings"], rows)
    folder = manifest.with_suffix("")
    export(model.parent / "hf", quantized_state(run.path, stage, model), folder, card)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    write_json(manifest, {"folder": str(folder), "files": files, "provenance": provenance.collect("cpu")})


if "snakemake" in globals():
    run_job(snakemake, work)
