"""Reading single tensors of a Hugging Face folder, one file or many shards, without reading the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from oaem.errors import UserError
from oaem.runtime.atomic import read_json, write_json
from oaem.runtime.digest import digest

# Beside a model's folder: the digest of each of its tensors, written when the model was fetched.
DIGESTS = "tensors.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def tensor_files(folder: Path | str) -> dict[str, Path]:
    """The file of every tensor in `folder`, by tensor name; UserError if weights are missing, damaged or pickled."""
    folder = Path(folder)
    index = folder / INDEX
    if not index.is_file():
        single = folder / SINGLE
        if not single.is_file():
            raise UserError(_no_weights(folder))
        return dict.fromkeys(_keys(single), single)
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): folder / Path(file).name for name, file in placed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of safetensors shards ({error!r}); fetch the model again.") from None
    for shard in sorted(set(files.values())):
        promised = {name for name, file in files.items() if file == shard}
        absent = promised - set(_keys(shard))
        if absent:
            raise UserError(f"{shard}: lacks {sorted(absent)[0]}, which {INDEX} places in it; fetch the model again.")
    return files


def read_tensors(folder: Path | str, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor whose name begins with `prefix`, by its whole name, in its stored dtype on the CPU."""
    return read_selected(folder, lambda name: name.startswith(prefix))


def read_selected(folder: Path | str, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """Every tensor whose name is `wanted`; only these are read from the disk.

    UserError if one is not what it was when the model was fetched, where that has been written down.
    """
    known = _digests(folder)
    by_file: dict[Path, list[str]] = {}
    for name, file in tensor_files(folder).items():
        if wanted(name):
            by_file.setdefault(file, []).append(name)
    found: dict[str, torch.Tensor] = {}
    for file, names in by_file.items():
        with open_tensors(file) as shard:
            tensors = {name: shard.get_tensor(name) for name in names}
        for name, tensor in tensors.items():
            if known.get(name) not in (None, digest(tensor)):
                raise UserError(
                    f"{file}: {name} is damaged (its checksum does not agree); delete {Path(folder).parent}/"
                    "manifest.json and run the same command again: the model is fetched anew."
                )
        found |= tensors
    return found


def write_digests(folder: Path | str) -> None:
    """Write down what every tensor of the model in `folder` is now, for later readers to compare with."""
    known: dict[str, str] = {}
    for file in sorted(set(tensor_files(folder).values())):
        with open_tensors(file) as shard:
            known |= {name: digest(shard.get_tensor(name)) for name in shard.keys()}  # noqa: SIM118
    write_json(Path(folder).parent / DIGESTS, known)


def _digests(folder: Path | str) -> dict[str, str]:
    """The digests that `write_digests` wrote, by tensor; empty for a folder that was not fetched by the workflow."""
    path = Path(folder).parent / DIGESTS
    return dict(read_json(path)) if path.is_file() else {}


def stored_shapes(folder: Path | str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in `folder`, by name; reads headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in set(tensor_files(folder).values()):
        with open_tensors(file) as shard:
            shapes |= {name: tuple(shard.get_slice(name).get_shape()) for name in shard.keys()}  # noqa: SIM118
    return shapes


def open_tensors(file: Path) -> Any:
    """An open safetensors file on the CPU; UserError if it is missing, truncated or no such file."""
    try:
        return safe_open(file, framework="pt", device="cpu")
    except FileNotFoundError:
        raise UserError(f"{file}: missing; fetch the model again.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: truncated or not a safetensors file ({error}); fetch it again.") from None


def _keys(file: Path) -> list[str]:
    with open_tensors(file) as opened:
        return list(opened.keys())


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder; expected a model in the Hugging Face format."
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickled:
        return (
            f"{folder}: its weights are pickle files ({pickled[0]}), which can run code when opened and are never "
            "read. Convert them once with save_pretrained(…, safe_serialization=True), or take a safetensors version."
        )
    return f"{folder}: holds neither {SINGLE} nor {INDEX}; expected a model in the Hugging Face format."
