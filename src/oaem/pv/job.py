"""From the workflow's parameters to a PV-tuning: what is tuned, on what, and what the choice of an epoch looks at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oaem.calibration.artefacts import load_blocks
from oaem.config.grid import Run
from oaem.config.schema import PVTuning
from oaem.corpora.tokens import read_tokens
from oaem.evaluation.perplexity import perplexity
from oaem.models.load import load_config
from oaem.models.precision import compute_dtype
from oaem.pv.trainer import PVJob, tune


def prepare(run: Run, settings: Mapping[str, Any], manifest: Path, device: str, code: str) -> PVJob:
    """The tuning of `run`; manifest: the model's, with the model folder beside it."""
    folder = manifest.parent / "hf"
    dtype = compute_dtype(folder, device)
    return PVJob(
        model_folder=folder,
        settings=PVTuning.model_validate(settings["pv"]),
        seed=run.seed,
        dtype=load_config(folder).dtype,
        compute_dtype=dtype,
        device=device,
        fingerprint=code,
    )


def tune_run(job: PVJob, blocks: Path, tokens: list[Path], folder: Path) -> dict[str, Any]:
    """Tune the blocks of a run; tokens: the files of tuning, validation and test tokens, in this order."""
    texts = [read_tokens(path)[0] for path in tokens]
    validation, test = (lambda model, text=text: perplexity(model, text, 1, job.device).value for text in texts[1:])
    return tune(job, load_blocks(job.model_folder, blocks), texts[0], folder, test=test, validation=validation)
