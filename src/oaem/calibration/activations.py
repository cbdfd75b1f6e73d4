"""Activations handed from one block's job to the next, as files that prove themselves whole."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

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
    _store(activations_path(folder, index), _header(folder, hidden, fingerprint), _bytes_of(hidden))


class ActivationWriter:
    """Hands activations from block to block in `folder`: those of the next are stored while it is being quantised.

    What was there for blocks before is removed once the next one's are whole and the caller has come back, so a
    process that is killed at any time finds either. Whatever goes wrong in storing is raised by the next call, or at
    the end of the context.
    """

    def __init__(self, folder: Path, fingerprint: str):
        self.folder, self.fingerprint = folder, fingerprint
        self._thread = ThreadPoolExecutor(1)
        self._storing: Future[None] | None = None
        self._index = 0
        self._home = torch.empty(0, dtype=torch.uint8)

    def write(self, index: int, hidden: Tensor) -> None:
        """Store the inputs [sequences, window, hidden] of block `index`, which must not change until the next call.

        Those of a GPU are copied first, for nothing else may use the device while it records its steps.
        """
        self.wait()
        hidden = hidden.contiguous()
        header, raw = _header(self.folder, hidden, self.fingerprint), _bytes_of(hidden)
        if raw.is_cuda:
            if len(self._home) != len(raw):
                self._home = torch.empty(len(raw), dtype=torch.uint8, pin_memory=True)
            raw = self._home.copy_(raw)
        self._storing = self._thread.submit(_store, activations_path(self.folder, index), header, raw)
        self._index = index

    def wait(self) -> None:
        """Until the last ones are stored; then those of the blocks before are not needed any more."""
        if self._storing is not None:
            self._storing.result()
            self._storing = None
            self.remove_before(self._index)

    def remove_before(self, index: int) -> None:
        """The inputs of the blocks before `index` have served."""
        for path in self.folder.glob("*.safetensors"):
            if path.name < activations_path(self.folder, index).name:
                path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()


def _header(folder: Path, hidden: Tensor, fingerprint: str) -> bytes:
    """What precedes the numbers in the file; UserError if the disk is too small for them."""
    require_disk(folder, hidden.nbytes, "storing the activations between two blocks")
    metadata = {"oaem": json.dumps({"fingerprint": fingerprint, "sha256": digest(hidden)}, sort_keys=True)}
    entry = {"dtype": DTYPES[hidden.dtype], "shape": list(hidden.shape), "data_offsets": [0, hidden.nbytes]}
    header = json.dumps({"__metadata__": metadata, "hidden": entry}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _bytes_of(hidden: Tensor) -> Tensor:
    return hidden.view(torch.uint8).flatten()


def _store(path: Path, header: bytes, raw: Tensor) -> None:
    buffer = torch.empty(min(PIECE, len(raw)), dtype=torch.uint8, pin_memory=True) if raw.is_cuda else None
    with atomic_path(path, durable=False) as temporary, temporary.open("wb") as file:
        file.write(header)
        for piece in raw.split(PIECE):
            file.write((piece if buffer is None else buffer[: len(piece)].copy_(piece)).numpy().data)


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
