"""Activations handed from one block's job to the next, as files that prove themselves whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from oaem.runtime.atomic import atomic_path
from oaem.runtime.devices import require_disk


def activations_path(folder: Path, index: int) -> Path:
    """Where the inputs of block `index` lie."""
    return folder / f"{index:04d}.safetensors"


def write_activations(folder: Path, index: int, hidden: Tensor, fingerprint: str) -> None:
    """Store the inputs [sequences, window, hidden] of block `index`, with their checksum and fingerprint."""
    hidden = hidden.to("cpu").contiguous()
    metadata = {"oaem": json.dumps({"fingerprint": fingerprint, "sha256": _digest(hidden)}, sort_keys=True)}
    require_disk(folder, hidden.nbytes, "storing the activations between two blocks")
    with atomic_path(activations_path(folder, index)) as temporary:
        save_file({"hidden": hidden}, temporary, metadata=metadata)


def read_activations(folder: Path, index: int, fingerprint: str) -> Tensor | None:
    """The stored inputs of block `index`, or None if they are missing, damaged or made under another fingerprint."""
    try:
        with safe_open(str(activations_path(folder, index)), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("oaem", "{}"))
            if metadata.get("fingerprint") != fingerprint:
                return None
            hidden: Tensor = file.get_tensor("hidden")
    except (OSError, SafetensorError, ValueError):
        return None
    return hidden if _digest(hidden) == metadata["sha256"] else None


def _digest(hidden: Tensor) -> str:
    """A checksum at the speed of memory, for gigabytes between two blocks: SHA-256 of the sums of 64 kB pieces.

    It is against damage, not against malice: any single flipped bit changes the sum of its piece.
    """
    raw = hidden.view(torch.uint8).flatten()
    whole = raw[: len(raw) // 65536 * 65536].view(torch.int64).view(-1, 8192).sum(1)
    digest = hashlib.sha256(whole.numpy().tobytes())
    digest.update(raw[len(raw) // 65536 * 65536 :].numpy().tobytes())
    return digest.hexdigest()
