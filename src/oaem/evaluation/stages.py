"""The model of each stage of a run, ready to be evaluated: original, quantised, tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oaem.calibration.artefacts import QuantizedState, load_blocks, load_state, tensors_checksum, to_dense
from oaem.config.grid import Run
from oaem.errors import UserError
from oaem.models.load import load_model
from oaem.models.precision import compute_dtype
from oaem.planning.layout import PV_STAGES, RESULTS
from oaem.runtime.atomic import read_json
from oaem.runtime.provenance import checksum


def measured_with(run: str, stage: str) -> dict[str, list[str]]:
    """The stages that a job for `stage` measures, as {stage to assemble: all stages that are the same model}.

    The epoch chosen on the test set, the one chosen on validation text and the last one are often the same state: then
    it is measured once and counts for each.
    """
    if stage != "post_pv":
        return {stage: [stage]}
    same: dict[str, list[str]] = {}
    for name in PV_STAGES:
        same.setdefault(tensors_checksum(_tuned(run, name)), []).append(name)
    return {names[0]: names for names in same.values()}


def compared(path: str) -> tuple[Run, Run]:
    """The run at `path` and the greedy one of the same grid point; UserError if it is that one."""
    run = Run.parse(path)
    if run.init == "greedy":
        raise UserError(f"{path}: runs are compared with the greedy one of their grid point; name another's, oaem's.")
    return run, run.partner("greedy")


def assemble(subject: str, stage: str, manifest: Path, device: str) -> Any:
    """The dense model of `stage` in evaluation dtype on `device`, in eval mode.

    subject: a run's path or `models/{model}`; stage: fp16, pre_pv or one of the post_pv stages; manifest: the model's.
    """
    folder = manifest.parent / "hf"
    dtype = compute_dtype(folder, device)
    if stage == "fp16":
        return load_model(folder, dtype, device)
    return to_dense(folder, quantized_state(subject, stage, manifest), dtype, device)


def quantized_state(run: str, stage: str, manifest: Path) -> QuantizedState:
    """The quantised weights of a run at a stage other than fp16."""
    place = Path(RESULTS) / run
    if stage == "pre_pv":
        return load_blocks(manifest.parent / "hf", place / "blocks")
    return load_state(_tuned(run, stage))[0]


def _tuned(run: str, stage: str) -> Path:
    """The tuned state of a stage; UserError unless it is what PV-tuning left."""
    folder = Path(RESULTS) / run / "pv"
    path = folder / f"{PV_STAGES[stage]}.safetensors"
    if not path.is_file() or checksum(path) != read_json(folder / "manifest.json")["sha256"][PV_STAGES[stage]]:
        raise UserError(
            f"{path}: missing or damaged (its checksum does not agree); delete {folder}/manifest.json and run the same "
            "command again: the tuning is done anew."
        )
    return path
