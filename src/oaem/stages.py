"""The model of each stage of a run, ready to be evaluated: original, quantised, tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oaem.checkpoint import QuantizedState, load_blocks, load_state, tensors_checksum, to_dense
from oaem.layout import PV_STAGES, RESULTS
from oaem.models.load import load_model
from oaem.models.precision import compute_dtype


def measured_with(run: str, stage: str) -> dict[str, list[str]]:
    """The stages that a job for `stage` measures, as {stage to assemble: all stages that are the same model}.

    The epoch chosen on the test set, the one chosen on validation text and the last one are often the same state: then
    it is measured once and counts for each.
    """
    if stage != "post_pv":
        return {stage: [stage]}
    same: dict[str, list[str]] = {}
    for name, state in PV_STAGES.items():
        same.setdefault(tensors_checksum(Path(RESULTS) / run / "pv" / f"{state}.safetensors"), []).append(name)
    return {names[0]: names for names in same.values()}


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
    return load_state(place / "pv" / f"{PV_STAGES[stage]}.safetensors")[0]
