"""Resumable states: everything a killed tuning needs to go on as if nothing had happened.

A state is a folder, named after step and fingerprint, with one safetensors file a block, one for each tensor outside
the blocks, and `manifest.json`, written last and deleted first. A folder without a manifest does not count. The state
before is deleted only when the new one is whole, so there is always one to go on from. With several ranks each writes
the parts that it owns, and a list of them for the first rank, which alone writes the manifest and removes anything.
"""

from __future__ import annotations

import logging
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
from oaem.pv.shares import part_of
from oaem.runtime.atomic import atomic_path, read_json, write_json

log = logging.getLogger(__name__)
MANIFEST, LIST = "manifest.json", "rank-{}.json"


def save_resumable(folder: Path, optimizer: PVOptimizer, fingerprint: str, progress: dict[str, Any]) -> None:
    """Write the state after step `progress["step"]` into `folder`, then delete every older one.

    progress: what the trainer needs besides tensors, as JSON; the first rank's counts.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # offloaded tensors may still be on their way home
    target, team = state_folder(folder, progress["step"], fingerprint), optimizer.team
    files = _save_parts(target, optimizer)
    if not team.leads:
        write_json(target / LIST.format(team.rank), files)
    team.wait()
    if not team.leads:
        return
    for rank in range(1, team.size):
        files |= read_json(target / LIST.format(rank))
    write_json(target / MANIFEST, {"fingerprint": fingerprint, "files": files, "progress": progress})
    for other in _folders(folder):
        if other != target:
            (other / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(other)


def state_folder(folder: Path, step: int, fingerprint: str) -> Path:
    """Where in `folder` the state after `step` lies."""
    return folder / f"step-{step:06d}-{fingerprint}"


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


def _save_parts(target: Path, optimizer: PVOptimizer) -> dict[str, tuple[str, str]]:
    """Write the parts that this rank owns; returns name and checksum of each one's file."""
    files: dict[str, tuple[str, str]] = {}
    for number, (part, tensors) in enumerate(_parts(optimizer).items()):
        if not optimizer.owns(part):
            continue
        name = f"{number:04d}.safetensors"
        with atomic_path(target / name) as temporary:
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary)
            files[part] = (name, checksum(temporary))
    return files


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _parts(optimizer: PVOptimizer) -> dict[str, dict[str, Tensor]]:
    """The live tensors of a state, a part for each block of the model and each tensor outside the blocks.

    Of a part that another rank owns only what every rank has: no buffers, no moments.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, linear in optimizer.student.linears.items():
        part = parts.setdefault(part_of(name), {})
        part |= {f"{name}.{key}": getattr(linear, key) for key in ("codes", "codebooks", "row_scales")}
        part |= {f"{name}.{key}": tensor for key, tensor in optimizer.buffers.get(name, {}).items()}
    for name, parameter in optimizer.student.parameters.items():
        parts.setdefault(part_of(name), {})[name] = parameter
    for name, moments in optimizer.moments.items():
        parts[part_of(name)] |= {f"{name}.{key}": tensor for key, tensor in moments.items()}
    return parts
