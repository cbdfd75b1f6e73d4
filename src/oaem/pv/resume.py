"""Resumable states: everything a killed tuning needs to go on as if nothing had happened.

A state is a folder, named after step and fingerprint, with one safetensors file a block, one for each tensor outside
the blocks, and `manifest.json`, written last and deleted first. A folder without a manifest does not count. The state
before is deleted only when the new one is whole, so there is always one to go on from.
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from oaem.calibration.artefacts import checksum
from oaem.errors import UserError
from oaem.pv.optimizer import PVOptimizer
from oaem.runtime.atomic import atomic_path, read_json, write_json

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def save_resumable(folder: Path, optimizer: PVOptimizer, fingerprint: str, progress: dict[str, Any]) -> None:
    """Write the state after step `progress["step"]` into `folder`, then delete every older one.

    progress: what the trainer needs besides tensors, as JSON.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # offloaded tensors may still be on their way home
    target = folder / f"step-{progress['step']:06d}-{fingerprint}"
    parts = _parts(optimizer)
    files: dict[str, tuple[str, str]] = {}
    for number, (part, tensors) in enumerate(parts.items()):
        name = f"{number:04d}.safetensors"
        with atomic_path(target / name) as temporary:
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary)
            files[part] = (name, checksum(temporary))
    write_json(target / MANIFEST, {"fingerprint": fingerprint, "files": files, "progress": progress})
    for other in _folders(folder):
        if other != target:
            (other / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(other)


def find_resumable(folder: Path, fingerprint: str) -> Path | None:
    """The newest whole state made under `fingerprint`, or None.

    Folders that a kill left unfinished are removed. States of another fingerprint stay until they are replaced.
    """
    found = None
    for candidate in _folders(folder):
        if not (candidate / MANIFEST).exists():
            shutil.rmtree(candidate)
        elif read_json(candidate / MANIFEST).get("fingerprint") == fingerprint:
            found = candidate
        else:
            log.warning("%s: made with other settings, inputs or code, not used", candidate)
    return found


def load_progress(path: Path) -> dict[str, Any]:
    """The plain values that were saved with the state in `path`."""
    return dict(read_json(path / MANIFEST)["progress"])


def load_resumable(path: Path, optimizer: PVOptimizer) -> None:
    """Put the state in `path` into the optimiser and its student, in place; UserError if it is damaged."""
    manifest = read_json(path / MANIFEST)
    try:
        for part, tensors in _parts(optimizer).items():
            name, digest = manifest["files"][part]
            if checksum(path / name) != digest:
                raise ValueError(f"the checksum of {name} does not agree")
            stored = load_file(path / name)
            for key, tensor in tensors.items():
                tensor.detach().copy_(stored[key])
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error}); delete this folder and run the same command again.") from None
    for linear in optimizer.student.linears.values():
        linear.refresh(linear.dequantize())


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _parts(optimizer: PVOptimizer) -> dict[str, dict[str, Tensor]]:
    """The live tensors of a state, a part for each block of the model and each tensor outside the blocks."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, linear in optimizer.student.linears.items():
        part = parts.setdefault(_part(name), {})
        part |= {f"{name}.{key}": getattr(linear, key) for key in ("codes", "codebooks", "row_scales")}
        part |= {f"{name}.{key}": tensor for key, tensor in optimizer.buffers[name].items()}
    for name, parameter in optimizer.student.parameters.items():
        parts.setdefault(_part(name), {})[name] = parameter
    for name, moments in optimizer.moments.items():
        parts[_part(name)] |= {f"{name}.{key}": tensor for key, tensor in moments.items()}
    return parts


def _part(name: str) -> str:
    block = re.match(r".*?\.\d+(?=\.)", name)
    return block[0] if block else name
