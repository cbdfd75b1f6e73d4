"""Fetch or unpack a model into a plain Hugging Face folder and say what it is."""

import json
from pathlib import Path
from typing import Any

from oaem.config.schema import ModelSource
from oaem.models.source import materialise
from oaem.models.tensors import write_digests
from oaem.runtime import provenance
from oaem.runtime.atomic import write_json
from oaem.runtime.jobs import run_job


def work(snakemake: Any) -> None:
    asked, manifest = json.loads(snakemake.params.source), Path(snakemake.output.manifest)
    facts = materialise(ModelSource.model_validate(asked), manifest.parent / "hf")
    write_digests(manifest.parent / "hf")
    made = {
        "fingerprint": provenance.fingerprint(facts["files"]),
        "provenance": provenance.collect("cpu", settings=asked, code=snakemake.params.code),
    }
    write_json(manifest, facts | made)


if "snakemake" in globals():
    run_job(snakemake, work)
