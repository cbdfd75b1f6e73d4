"""Getting a model: whatever its source, the result is a plain Hugging Face folder with safetensors weights."""

from __future__ import annotations

import fnmatch
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from oaem.config.schema import ModelSource
from oaem.errors import UserError
from oaem.models.embedded import convert_embedded
from oaem.models.families import family_of
from oaem.models.hub_files import fetch_file, fetch_snapshot, require_checksums
from oaem.models.load import load_config, load_tokenizer
from oaem.models.packages import convert_packages
from oaem.models.skeleton import build_skeleton
from oaem.models.tensors import INDEX, SINGLE, stored_shapes, tensor_files
from oaem.runtime.atomic import atomic_folder
from oaem.runtime.devices import require_disk
from oaem.runtime.provenance import checksum

# Weights as safetensors, configuration and tokenizer: nothing that is code or a pickle.
PATTERNS = ("*.safetensors", "*.json", "tokenizer.model", "vocab.txt", "merges.txt", "chat_template.jinja")
# Second copies of the weights that some repositories carry.
IGNORED = ("*/*", "consolidated*", "adapter_*")


def materialise(source: ModelSource, folder: Path | str) -> dict[str, Any]:
    """Write the model of `source` to `folder`, whole or not at all, and return facts about it.

    The facts: source, label, origin, revision, family, blocks, parameters, bytes, and the SHA-256 of every file, which
    is worked out here alone. A model that is there already is replaced. UserError if the source lacks anything, is
    damaged, gated, of an unknown family, or not what `source.sha256` says.
    """
    fetch: dict[str, Callable[[ModelSource, Path], dict[str, Any]]] = {
        "embedded": convert_embedded,
        "packages": convert_packages,
        "hub": _fetch_hub,
        "folder": _copy_folder,
    }
    _refuse_foreign(Path(folder))
    with atomic_folder(folder) as temporary:
        origin = fetch[source.source](source, temporary)
        files = origin.pop("files", None) or {file.name: checksum(file) for file in sorted(temporary.iterdir())}
        require_checksums(files, source.sha256, str(origin["origin"]))
        try:
            facts = check_folder(temporary)
        except UserError as error:
            # The user must read of what they named, not of a temporary folder.
            raise UserError(str(error).replace(str(temporary), str(origin["origin"]))) from None
        _refuse_other_sizes(source, temporary)
    return {"source": source.source, "label": source.label, **origin, **facts, "files": files}


def check_folder(folder: Path) -> dict[str, Any]:
    """Facts about the model in `folder`; UserError unless config, tokenizer and every weight of its shape are there."""
    config = load_config(folder)
    load_tokenizer(folder)
    model = build_skeleton(config, torch.float32)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = stored_shapes(folder)
    for name, shape in wanted.items():
        if name not in found:
            raise UserError(
                f"{folder}: lacks the tensor {name}, which its config.json asks for; fetch the model again."
            )
        if found[name] != shape:
            raise UserError(
                f"{folder}: {name} has shape {found[name]}, expected {shape} by config.json; fetch it again."
            )
    files = set(tensor_files(folder).values())
    return {
        "family": family_of(config).name,
        "blocks": int(config.num_hidden_layers),
        "parameters": sum(math.prod(shape) for shape in wanted.values()),
        "bytes": sum(file.stat().st_size for file in files),
    }


def _refuse_other_sizes(source: ModelSource, folder: Path) -> None:
    """UserError unless the model in `folder` has the blocks and the shape by which the configuration plans."""
    config = load_config(folder)
    found, said = int(config.num_hidden_layers), source.blocks
    if said is not None and said != found:
        raise UserError(f"{source.label}: has {found} blocks, but the configuration says `blocks: {said}`.")
    for key, size in (source.shape.model_dump() if source.shape else {}).items():
        own = getattr(config, key, None)
        if key == "head_dim" and own is None:
            own = config.hidden_size // config.num_attention_heads
        if size != own:
            raise UserError(f"{source.label}: its {key} is {own}, but the configuration says {size} under `shape`.")


def _fetch_hub(source: ModelSource, target: Path) -> dict[str, Any]:
    """Fetch into the hub's cache, check every file there, and link from it."""
    repo = str(source.repo)
    snapshot = fetch_snapshot(repo, source.revision, patterns=PATTERNS, ignored=IGNORED, gated=source.gated)
    sums = {}
    for name in sorted(file.name for file in snapshot.iterdir() if _wanted(file.name)):
        expected = source.sha256.get(name)
        _, sums[name] = fetch_file(repo, name, snapshot.name, "model", gated=source.gated, expected=expected)
    _place(snapshot, target, repo)
    return {"origin": repo, "revision": snapshot.name, "files": sums}


def _copy_folder(source: ModelSource, target: Path) -> dict[str, Any]:
    origin = Path(str(source.path)).expanduser()
    tensor_files(origin)
    _place(origin, target, str(origin))
    return {"origin": str(origin), "revision": source.revision}


def _place(origin: Path, target: Path, name: str) -> None:
    """Hard links where the file system allows, so that a large model is stored once; copies elsewhere."""
    files = [file for file in sorted(origin.iterdir()) if file.is_file() and _wanted(file.name)]
    if not any(file.name in (SINGLE, INDEX) for file in files):
        raise UserError(f"{name}: holds neither {SINGLE} nor {INDEX}; only safetensors weights are read.")
    for file in files:
        real = file.resolve()
        try:
            os.link(real, target / file.name)
        except OSError:
            require_disk(target, real.stat().st_size, f"a copy of {file.name}")
            shutil.copyfile(real, target / file.name)


def _wanted(name: str) -> bool:
    return any(fnmatch.fnmatch(name, p) for p in PATTERNS) and not any(fnmatch.fnmatch(name, p) for p in IGNORED)


def _refuse_foreign(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: holds something that is not a model; move it away or choose another results folder."
        )
