"""A quantised model as a folder that transformers loads with the aqlm library, with its model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from oaem.config.geometry import Geometry
from oaem.errors import UserError
from oaem.export.model_card import CardData, render
from oaem.models.load import load_config, read_tensors
from oaem.models.skeleton import build_skeleton
from oaem.quantization.weight import AdditiveWeight
from oaem.runtime.atomic import atomic_folder
from oaem.runtime.devices import require_disk

if TYPE_CHECKING:
    from oaem.calibration.artefacts import QuantizedState

# Copied as they are, where the original model has them.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "USE_POLICY.md",
)


def export(model_folder: Path | str, state: QuantizedState, folder: Path | str, card: CardData) -> None:
    """Write `state`, put in place of the weights in `model_folder`, to `folder` in the aqlm format; all or nothing.

    Floating-point tensors are stored in the dtype of the original model. An earlier export in `folder` is replaced.
    UserError if `state` does not fit the model, the format cannot hold it, or `folder` holds something else.
    """
    model_folder, folder = Path(model_folder), Path(folder)
    _refuse_foreign(folder)
    geometry = common_geometry(state.linears)
    if geometry != card.run.geometry:
        raise UserError(f"{folder}: the run says {card.run.geometry.name}, its weights are {geometry.name}.")
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    tensors, tied = _tensors(model_folder, state, bool(load_config(model_folder).tie_word_embeddings))
    config |= {
        "dtype": str(next(iter(tensors[f"{name}.codebooks"] for name in state.linears)).dtype).removeprefix("torch."),
        "tie_word_embeddings": tied,
        "quantization_config": quantization_config(geometry, _other_linears(model_folder, state)),
    }
    config.pop("torch_dtype", None)
    require_disk(folder.parent, sum(tensor.nbytes for tensor in tensors.values()), "the export")
    with atomic_folder(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name in COMPANIONS:
            if (model_folder / name).is_file():
                shutil.copyfile(model_folder / name, temporary / name)
        (temporary / "README.md").write_text(render(card, true_bits(state.linears)), encoding="utf-8")


def common_geometry(linears: Mapping[str, AdditiveWeight]) -> Geometry:
    """The geometry that all `linears` share; UserError if they do not, or the format cannot hold it."""
    shapes = {tuple(weight.codebooks.shape) for weight in linears.values()}
    if len(shapes) != 1:
        raise UserError(f"export: the aqlm format has one geometry a model, the codebooks have {sorted(shapes)}.")
    ((num_codebooks, size, group_size),) = shapes
    nbits = size.bit_length() - 1
    if size != 2**nbits or nbits > 16:
        raise UserError(f"export: codebooks of {size} entries; the aqlm format holds powers of two up to 65536.")
    return Geometry(num_codebooks, nbits, group_size)


def quantization_config(geometry: Geometry, other_linears: list[str]) -> dict[str, Any]:
    """What config.json says of the quantisation; `other_linears` are the linears that stay dense."""
    # transformers 5 compares names of modules, version 4 compared names of weights.
    names = [form for name in other_linears for form in (name, f"{name}.weight")]
    return {
        "quant_method": "aqlm",
        "in_group_size": geometry.group_size,
        "out_group_size": 1,
        "num_codebooks": geometry.num_codebooks,
        "nbits_per_codebook": geometry.nbits,
        "linear_weights_not_to_quantize": names,
    }


def pack_codes(codes: Tensor, nbits: int) -> Tensor:
    """Codes [out, in/g, M] as the format stores them: signed, of 8 or 16 bits, the upper half wrapped to below zero."""
    signed = codes.to(torch.int32)
    signed = torch.where(signed >= 2 ** (nbits - 1), signed - 2**nbits, signed)
    return signed.to(torch.int8 if nbits <= 8 else torch.int16).contiguous()


def true_bits(linears: Mapping[str, AdditiveWeight]) -> float:
    """Bits a quantised parameter, with codebooks and row scales (16 bits each) counted in."""
    stored = parameters = 0.0
    for weight in linears.values():
        num_codebooks, size, group_size = weight.codebooks.shape
        nbits = size.bit_length() - 1
        stored += weight.codes.numel() * nbits + 16 * (weight.codebooks.numel() + weight.row_scales.numel())
        parameters += weight.codes.numel() / num_codebooks * group_size
    return stored / parameters


def _tensors(model_folder: Path, state: QuantizedState, tied: bool) -> tuple[dict[str, Tensor], bool]:
    """Every tensor of the export by its name in the format, and whether the embeddings are still tied."""
    tensors = read_tensors(model_folder)
    for name, weight in state.linears.items():
        original = tensors.pop(f"{name}.weight", None)
        shape = (weight.codes.shape[0], weight.codes.shape[1] * weight.codebooks.shape[2])
        if original is None or tuple(original.shape) != shape:
            found = "none" if original is None else tuple(original.shape)
            raise UserError(f"{model_folder}: {name}.weight is {found}, the quantised one is {shape}: another model's.")
        tensors |= _stored_linear(name, weight, original.dtype)
    reference = next(tensors[f"{name}.codebooks"] for name in state.linears)
    for name, tensor in state.tensors.items():
        known = "model.embed_tokens.weight" if name == "lm_head.weight" and tied else name
        if known not in tensors or tensors[known].shape != tensor.shape:
            raise UserError(f"{model_folder}: has no tensor {name} of shape {tuple(tensor.shape)}: another model's.")
        # PV-tuning may train the output head apart from the embeddings it was tied to.
        tensors[name] = tensor.detach().to("cpu", reference.dtype if tensor.is_floating_point() else None).contiguous()
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if tied and head is not None and embedding is not None:
        tied = torch.equal(head, embedding)
        if tied:
            del tensors["lm_head.weight"]
    return tensors, tied


def _stored_linear(name: str, weight: AdditiveWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    nbits = weight.codebooks.shape[1].bit_length() - 1
    return {
        f"{name}.codes": pack_codes(weight.codes.detach().cpu(), nbits),
        f"{name}.codebooks": weight.codebooks.detach().to("cpu", dtype).unsqueeze(2).contiguous(),
        f"{name}.scales": weight.row_scales.detach().to("cpu", dtype).reshape(-1, 1, 1, 1).contiguous(),
    }


def _other_linears(model_folder: Path, state: QuantizedState) -> list[str]:
    """The linears of the model that are not quantised, the output head among them; UserError if others are quantised.

    What aqlm replaces when transformers loads the export is every module of torch's linear class, by its name.
    """
    skeleton = build_skeleton(load_config(model_folder), torch.float32)
    linears = {name for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)}
    for name in sorted(state.linears.keys() - linears):
        kind = type(skeleton.get_submodule(name)).__name__
        raise UserError(
            f"export: {name} is a {kind} in transformers, whose aqlm integration loads linear layers alone: a model "
            "quantised there cannot be exported."
        )
    return sorted(linears - state.linears.keys())


def _refuse_foreign(folder: Path) -> None:
    """UserError if `folder` holds anything but an earlier export."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["quantization_config"]["quant_method"] == "aqlm":
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{folder}: holds something else than an export; move it away or name another folder.")
