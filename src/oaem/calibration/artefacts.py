"""Quantised artefacts: one safetensors file a block, with a checksum beside it, and the whole model they make.

A block's file `blocks/0007.safetensors` holds for every quantised linear `<linear>.codes` (uint8 or uint16
[out, in/g, M]), `<linear>.codebooks` [M, K, g] and `<linear>.row_scales` [out], and the block's other tensors under
their own names. Its bytes depend on nothing but inputs, settings and code. What differs from one execution to the next
(seconds, machine) stands in `blocks/0007.json`, written after it: a block counts as done only if that file is there,
names the same fingerprint and the checksum agrees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from oaem.calibration.reports import block_path, how_to_mend
from oaem.errors import UserError
from oaem.models.families import family_of
from oaem.models.load import load_config, load_model
from oaem.quantization.linear import QuantizedLinear
from oaem.quantization.weight import AdditiveWeight
from oaem.runtime.atomic import atomic_path, read_json, write_json
from oaem.runtime.provenance import checksum

PARTS = ("codes", "codebooks", "row_scales")


@dataclass
class QuantizedState:
    """A quantised model, or a part of one: its quantised linears and its other tensors, by full name."""

    linears: dict[str, AdditiveWeight] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def state_of(module: nn.Module) -> QuantizedState:
    """What `module` holds: its QuantizedLinear children as additive weights, the rest as plain tensors."""
    linears = {
        name: child.additive_weight() for name, child in module.named_modules() if isinstance(child, QuantizedLinear)
    }
    own = {f"{name}.{part}" for name in linears for part in PARTS}
    tensors = {name: tensor for name, tensor in module.state_dict().items() if name not in own}
    return QuantizedState(linears, tensors)


def save_state(path: Path | str, state: QuantizedState, metadata: Mapping[str, Any]) -> str:
    """Write `state` atomically; returns the SHA-256 of the file.

    All metadata goes into one entry, because the order of several is not fixed and equal states must be equal bytes.
    """
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.tensors.items()}
    for name, weight in state.linears.items():
        narrow = torch.uint8 if weight.codebooks.shape[1] <= 256 else torch.uint16
        tensors[f"{name}.codes"] = weight.codes.detach().to("cpu").to(narrow).contiguous()
        tensors[f"{name}.codebooks"] = weight.codebooks.detach().to("cpu").contiguous()
        tensors[f"{name}.row_scales"] = weight.row_scales.detach().to("cpu").contiguous()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"oaem": json.dumps(dict(metadata), sort_keys=True)})
        return checksum(temporary)


def load_state(path: Path | str) -> tuple[QuantizedState, dict[str, Any]]:
    """The state in `path` and its metadata; UserError if the file is missing or damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("oaem", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable artefact ({error}); delete it and run the same command again."
        ) from None
    names = [name.removesuffix(".codes") for name in tensors if name.endswith(".codes")]
    linears = {name: AdditiveWeight(*(tensors.pop(f"{name}.{part}") for part in PARTS)) for name in names}
    return QuantizedState(linears, tensors), metadata


def tensors_checksum(path: Path | str) -> str:
    """SHA-256 of the tensors of a safetensors file, its metadata left out."""
    with Path(path).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        while chunk := file.read(2**24):
            digest.update(chunk)
    return digest.hexdigest()


def write_block(folder: Path, index: int, state: QuantizedState, fingerprint: str, report: Mapping[str, Any]) -> None:
    """Write block `index`, then its report; `report` may hold what differs between executions."""
    path = block_path(folder, index)
    digest = save_state(path, state, {"block": index, "fingerprint": fingerprint})
    write_json(path.with_suffix(".json"), {**report, "block": index, "fingerprint": fingerprint, "sha256": digest})


def load_block_state(folder: Path, index: int) -> QuantizedState:
    """Block `index` of a run with names relative to the block; UserError if it is missing or damaged."""
    path = block_path(folder, index)
    if not path.exists() or checksum(path) != read_json(path.with_suffix(".json"))["sha256"]:
        raise UserError(f"{path}: missing or damaged (its checksum does not agree); {how_to_mend(folder)}")
    return load_state(path)[0]


def load_blocks(model_folder: Path, blocks_folder: Path) -> QuantizedState:
    """All blocks of a run as one state with full names, such as `model.layers.7.mlp.up_proj`."""
    config = load_config(model_folder)
    whole = QuantizedState()
    for index in range(config.num_hidden_layers):
        state = load_block_state(blocks_folder, index)
        prefix = f"{family_of(config).blocks}.{index}."
        whole.linears |= {prefix + name: weight for name, weight in state.linears.items()}
        whole.tensors |= {prefix + name: tensor for name, tensor in state.tensors.items()}
    return whole


def dense_weight(weight: AdditiveWeight, device: str) -> Tensor:
    """The matrix [out, in] in float32, as in tuning: a sum of bfloat16 codewords would be rounded once a codebook."""
    codebooks, row_scales = weight.codebooks.to(device).float(), weight.row_scales.to(device).float()
    return AdditiveWeight(weight.codes.to(device), codebooks, row_scales).dequantize()


def to_dense(model_folder: Path, state: QuantizedState, dtype: torch.dtype, device: str) -> Any:
    """The original model with `state` put in place: quantised linears dequantised once to `dtype`."""
    model = load_model(model_folder, dtype, device)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in state.linears.items():
            parameters[f"{name}.weight"].copy_(dense_weight(weight, device))
        for name, tensor in state.tensors.items():
            if name == "lm_head.weight" and name not in parameters:
                _untie(model)
                parameters = dict(model.named_parameters())
            parameters[name].copy_(tensor)
    return model


def _untie(model: Any) -> None:
    """Give the output head weights of its own: PV-tuning trains them apart from the embeddings."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
