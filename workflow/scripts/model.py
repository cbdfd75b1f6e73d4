"""Fetch or unpack a model into a plain Hugging Face folder and say what it is."""

from pathlib import Path
from typing import Any

from oaem.config import ModelSource
from oaem.models.source import materialise
from oaem.runtime import provenance
from oaem.runtime.atomic import write_json
from oaem.runtime.jobs import run_job


def work(snakemake: Any) -> None:
    source = ModelSource.model_validate(snakemake.params.source)
    manifest = Path(snakemake.output.manifest)
    facts = materialise(source, manifest.parent / "hf")
    made = {
        "fingerprint": provenance.folder_fingerprint(manifest.parent / "hf"),
        "provenance": provenance.collect("cpu"),
    }
    write_json(manifest, facts | made)


if "snakemake" in globals():
    run_job(snakemake, work)
