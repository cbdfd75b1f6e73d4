"""Activations handed from one block's job to the next, as files that prove themselves whole."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from oaem.runtime.atomic import atomic_path
from oaem.runtime.devices import require_disk
from oaem.runtime.digest import digest

PIECE = 2**26  # bytes on their way to the file at a time
# As the safetensors format calls them.
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def activations_path(folder: Path, index: int) -> Path:
    """Where the inputs of block `index` lie."""
    return folder / f"{index:04d}.safetensors"


def write_activations(folder: Path, index: int, hidden: Tensor, fingerprint: str) -> None:
    """Store the inputs [sequences, window, hidden] of block `index`, with their checksum and fingerprint.

    They are gigabytes on a GPU as a rule, so they go to the file piece by piece and are never held in memory as a
    whole. What a power cut loses of them shows in the checksum and is computed again, so nobody waits for the disk.
    """
    hidden = hidden.contiguous()
    metadata = {"oaem": json.dumps({"fingerprint": fingerprint, "sha256": digest(hidden)}, sort_keys=True)}
    entry = {"dtype": DTYPES[hidden.dtype], "shape": list(hidden.shape), "data_offsets": [0, hidden.nbytes]}
    header = json.dumps({"__metadata__": metadata, "hidden": entry}).encode()
    header += b" " * (-len(header) % 8)
    require_disk(folder, hidden.nbytes, "storing the activations between two blocks")
    raw = hidden.view(torch.uint8).flatten()
    buffer = torch.empty(min(PIECE, len(raw)), dtype=torch.uint8, pin_memory=hidden.is_cuda)
    with atomic_path(activations_path(folder, index), durable=False) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for piece in raw.split(PIECE):
            file.write(buffer[: len(piece)].copy_(piece).numpy().data)


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
    return hidden if digest(hidden) == metadata["sha256"] else None
