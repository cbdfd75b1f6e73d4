"""Files of a tuning: a state an epoch while it runs, and the three that are kept."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oaem.calibration.artefacts import PARTS, QuantizedState, checksum
from oaem.errors import UserError
from oaem.runtime.atomic import atomic_path, read_json, write_json
from oaem.runtime.temporary import sweep

# The paper's protocol, the choice that does not look at the test set, and no choice at all.
OUTCOMES = ("best_test", "best_validation", "last")
RESULT = "result.json"
Record = dict[str, Any]


def epoch_file(folder: Path, epoch: int) -> Path:
    """Where the state at the end of `epoch` (from 1) lies while it may still be chosen."""
    return folder / "epochs" / f"{epoch:04d}.safetensors"


def chosen_epochs(epochs: list[Record]) -> dict[str, Record]:
    """The record of each outcome; among epochs of equal perplexity the first."""
    best_test = min(epochs, key=lambda record: record["test"])
    best_validation = min(epochs, key=lambda record: record["validation"])
    return dict(zip(OUTCOMES, (best_test, best_validation, epochs[-1]), strict=True))


def drop_unchosen(folder: Path, epochs: list[Record]) -> None:
    """Delete the states of epochs that no outcome refers to."""
    kept = {epoch_file(folder, record["epoch"]) for record in chosen_epochs(epochs).values()}
    for file in (folder / "epochs").iterdir():
        if file not in kept:
            file.unlink()


def are_whole(folder: Path, epochs: list[Record]) -> bool:
    """Whether the states that the outcomes refer to are all there and undamaged."""
    records = chosen_epochs(epochs).values() if epochs else ()
    files = {epoch_file(folder, record["epoch"]): record["sha256"] for record in records}
    return all(file.is_file() and checksum(file) == digest for file, digest in files.items())


def finish(folder: Path, epochs: list[Record], result: dict[str, Any]) -> dict[str, Any]:
    """Put the outcomes in place, then `result.json`, then remove what only a running tuning needs."""
    chosen = chosen_epochs(epochs)
    for outcome, record in chosen.items():
        with atomic_path(folder / f"{outcome}.safetensors") as temporary:
            shutil.copyfile(epoch_file(folder, record["epoch"]), temporary)
    result = result | {
        "epochs": epochs,
        "outcomes": {outcome: record["epoch"] for outcome, record in chosen.items()},
        "sha256": {outcome: record["sha256"] for outcome, record in chosen.items()},
    }
    write_json(folder / RESULT, result)
    for leftover in ("resume", "epochs"):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    sweep(folder)
    return result


def finished(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The result of a tuning that ended in `folder` under `fingerprint` with its outcomes undamaged, else None."""
    if not (folder / RESULT).is_file():
        return None
    try:
        result = read_json(folder / RESULT)
    except UserError:
        return None
    if result.get("fingerprint") != fingerprint:
        return None
    files = {folder / f"{outcome}.safetensors": result["sha256"][outcome] for outcome in OUTCOMES}
    whole = all(file.is_file() and checksum(file) == digest for file, digest in files.items())
    return dict(result) if whole else None


def share_of_changed_codes(initial: QuantizedState, tuned: QuantizedState) -> float:
    """The share of codes that differ; RuntimeError if a layer is exactly what it was, a fault of this project."""
    changed = total = 0
    for name, weight in tuned.linears.items():
        before = initial.linears[name]
        codes = int((weight.codes.int() != before.codes.cpu().int()).sum())
        moved = any(not torch.equal(getattr(weight, part), getattr(before, part).cpu()) for part in PARTS[1:])
        if codes == 0 and not moved:
            raise RuntimeError(f"PV-tuning left {name} exactly as it was: no gradient reaches it.")
        changed, total = changed + codes, total + weight.codes.numel()
    return changed / total


def digest(state: QuantizedState, tokens: Tensor) -> str:
    """A hash of the very bytes that a tuning starts from."""
    parts = {f"{name}.{part}": getattr(weight, part) for name, weight in state.linears.items() for part in PARTS}
    tensors = sorted((parts | state.tensors).items())
    found = hashlib.sha256()
    for name, tensor in [*tensors, ("tokens", tokens)]:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return found.hexdigest()
