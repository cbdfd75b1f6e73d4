"""The calibration stream: the inputs of every block of the unquantised model for one token set, stored once.

With `quantization.inputs: original` each block is quantised on these, so no block waits for another. All runs of a
model with the same calibration tokens read the same files. They are written block after block, each whole or absent, so
a killed job goes on where it was, to the same bits; the manifest, with the checksum of every file, is written last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oaem.calibration.activations import activations_path, read_activations, write_activations
from oaem.calibration.checked import load_for_calibration, require_finite, require_finite_weights
from oaem.calibration.observation import batch_size
from oaem.errors import UserError
from oaem.models.capture import block_arguments, run_block
from oaem.models.load import block_count, embed_tokens, load_config
from oaem.models.precision import compute_dtype
from oaem.runtime.atomic import read_json
from oaem.runtime.devices import require_disk
from oaem.runtime.digest import digest
from oaem.runtime.progress import Progress
from oaem.runtime.provenance import checksum, fingerprint


@dataclass(frozen=True)
class Stream:
    """A finished stream: where its files lie, what they were made under, and what is in them."""

    folder: Path
    fingerprint: str
    dtype: str
    sums: Mapping[str, str]

    @classmethod
    def open(cls, manifest: Path) -> Stream:
        """The stream that `manifest` describes; UserError if the manifest is missing or damaged."""
        facts = read_json(manifest)
        return cls(manifest.parent, facts["fingerprint"], facts["dtype"], facts["sums"])

    @property
    def identity(self) -> str:
        """A short hash of the contents of all files: what is computed from one stream never mixes with another's."""
        return fingerprint(dict(self.sums))

    def require_dtype(self, dtype: torch.dtype, device: str) -> None:
        """UserError unless a job that computes in `dtype` on `device` can go on from this stream."""
        if self.dtype != str(dtype):
            raise UserError(
                f"{self.folder}: the inputs of the blocks are {self.dtype}, but {device} computes in {dtype}: they "
                "were made on another kind of machine. Set `device` so that every job runs on the same kind, delete "
                f"{self.folder}/manifest.json and run the same command again."
            )

    def inputs(self, index: int) -> Tensor:
        """The inputs [sequences, window, hidden] of block `index`, on the CPU; UserError if they are not whole."""
        hidden = read_activations(self.folder, index, self.fingerprint)
        if hidden is None or digest(hidden) != self.sums[_name(index)]:
            raise UserError(
                f"{activations_path(self.folder, index)}: missing, damaged, or not what {self.folder}/manifest.json "
                "says. Delete that manifest and run the same command again: whole files are kept."
            )
        return hidden


def stream_facts(settings: Mapping[str, Any], manifest: Path, tokens: Path, device: str, code: str) -> dict[str, str]:
    """What a stream's manifest says of its making: its dtype, and a fingerprint of all that its numbers depend on.

    manifest: the model's. That is model, tokens, code, dtype, kind of device and the settings (threads).
    """
    dtype = str(compute_dtype(manifest.parent / "hf", device))
    facts = {"settings": dict(settings), "code": code, "device": device.split(":")[0], "dtype": dtype}
    facts |= {"model": read_json(manifest)["fingerprint"], "tokens": checksum(tokens)}
    return {"fingerprint": fingerprint(facts), "dtype": dtype}


@torch.no_grad()
def make_stream(model: Path, tokens: Tensor, folder: Path, made_under: str, device: str) -> dict[str, str]:
    """Store the inputs of every block of the model in the folder `model`; returns their checksums by block.

    tokens: [sequences, window] integer. made_under: the fingerprint of `stream_facts`. Files that are there already,
    whole and made under it, are kept. UserError if the disk is too small for all of them, or outputs are not finite.
    """
    dtype, count = compute_dtype(model, device), block_count(model)
    _require_disk(model, tokens, folder, dtype, count)
    progress = Progress(f"inputs of the blocks of {model}", count, every=20.0)
    hidden, sums = torch.empty(0), {}
    for index in range(count):
        stored = read_activations(folder, index, made_under)
        if stored is None:
            if index == 0:
                hidden = embed_tokens(model, tokens, dtype, device)
            else:
                hidden = _outputs(model, index - 1, hidden.to(device), dtype, device)
            write_activations(folder, index, hidden, made_under)
        else:
            hidden = stored
        sums[_name(index)] = digest(hidden)
        progress.step()
    return sums


def _outputs(model: Path, index: int, hidden: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """The outputs of block `index`, which are the inputs of the next one, in the chunks of a quantised block's walk."""
    block = load_for_calibration(model, index, dtype, device)
    require_finite_weights(block, model, index, dtype)
    arguments = block_arguments(model, index, hidden.shape[1], dtype, device)
    outputs = run_block(block, hidden, arguments, batch=batch_size(hidden))
    require_finite(outputs, f"{model}, block {index}")
    return outputs


def _require_disk(model: Path, tokens: Tensor, folder: Path, dtype: torch.dtype, count: int) -> None:
    missing = sum(not activations_path(folder, index).exists() for index in range(count))
    needed = missing * tokens.numel() * load_config(model).hidden_size * dtype.itemsize
    require_disk(folder, needed, f"storing the inputs of {missing} blocks")


def _name(index: int) -> str:
    return f"{index:04d}"
