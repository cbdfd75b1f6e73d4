"""Loading a causal LM from a Hugging Face folder: whole, or one block at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from oaem.errors import UserError
from oaem.models.families import Family, family_of, linear_names
from oaem.models.skeleton import block_list, build_skeleton, enter_block, place_buffers
from oaem.models.tensors import read_selected, read_tensors

__all__ = [
    "block_count",
    "embed_tokens",
    "linear_shapes",
    "load_block",
    "load_config",
    "load_model",
    "load_tokenizer",
    "read_tensors",
    "require_vocabulary",
]

# Jobs show progress of their own; a bar for every load of a block would bury it.
disable_progress_bar()
# Sequences whose embeddings are computed at once; only what the forward does before its first block runs on them.
EMBED_BATCH = 16
# What some configs of a known family ask for, and the loss of PV-tuning and of perplexity does not know.
_REFUSED = {
    "final_logit_softcapping": "but losses here are those of the output embedding's own logits",
    "use_bidirectional_attention": "but perplexity and PV-tuning need a model that sees no later token",
}


def load_config(folder: Path | str) -> Any:
    """The transformers config of the model in `folder`, of a known family; UserError if it cannot be read, or used."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: missing; expected a model in the Hugging Face format.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a config that transformers knows ({error}).") from None
    family_of(config)
    for key, reason in _REFUSED.items():
        if getattr(config, key, None):
            raise UserError(f"{path}: {key} is set, {reason}. Take a model without it.")
    return config


def load_tokenizer(folder: Path | str) -> Any:
    """The fast tokenizer of the model in `folder`; UserError if it cannot be read."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        raise UserError(f"{folder}: its tokenizer cannot be read ({error}); fetch the model again.") from None
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: expected a fast tokenizer (tokenizer.json), found {type(tokenizer).__name__}.")
    return tokenizer


def require_vocabulary(folder: Path | str, tokens: torch.Tensor) -> None:
    """UserError unless every token is one that the model in `folder` has an embedding for."""
    size, lowest, highest = int(load_config(folder).vocab_size), int(tokens.min()), int(tokens.max())
    if lowest < 0 or highest >= size:
        raise UserError(
            f"{folder}: token {highest if highest >= size else lowest} is not in the model's vocabulary of {size}: the "
            "tokens were made with another model's tokenizer. Put the model's own beside its weights, delete the "
            "tokens and run the same command again."
        )


def load_model(folder: Path | str, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The whole causal LM in eval mode, its weights in `dtype` on `device`.

    It is filled block by block: beside what `device` holds, no more than one block is in memory at a time.
    """
    folder, config = Path(folder), load_config(folder)
    family = family_of(config)
    model = build_skeleton(config, dtype)
    for index, block in enumerate(block_list(model, family)):
        _fill_block(block, family, folder, index, dtype, device)
    _fill_rest(model, model, family, folder, dtype, device)
    place_buffers(model, device)
    return model.eval()


def block_count(folder: Path | str) -> int:
    """Number of transformer blocks."""
    return int(load_config(folder).num_hidden_layers)


def linear_shapes(folder: Path | str) -> dict[str, tuple[int, int]]:
    """(out, in) of every quantised linear of a block, in the order of quantisation; reads config.json alone."""
    config = load_config(folder)
    family = family_of(config)
    block = block_list(build_skeleton(config, torch.float32), family)[0]
    shapes = {name: block.get_submodule(name).get_parameter("weight").shape for name in linear_names(family)}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}


def load_block(folder: Path | str, index: int, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
    """Transformer block `index` in eval mode; only this block's tensors are read from the disk."""
    config = load_config(folder)
    family = family_of(config)
    blocks = block_list(build_skeleton(config, dtype), family)
    if not 0 <= index < len(blocks):
        raise UserError(f"{folder}: has blocks 0 to {len(blocks) - 1}, not {index}.")
    _fill_block(blocks[index], family, Path(folder), index, dtype, device)
    place_buffers(blocks[index], device)
    return blocks[index].eval()


def embed_tokens(
    folder: Path | str, tokens: torch.Tensor, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    """Hidden states [n, L, hidden] that the model's forward hands to block 0 for `tokens` [n, L] (integers).

    Of the weights only the embedding, and whatever else the family has before its blocks, is read.
    """
    config = load_config(folder)
    require_vocabulary(folder, tokens)
    family = family_of(config)
    model = build_skeleton(config, dtype)
    _fill_rest(model, model.get_decoder(), family, Path(folder), dtype, device)
    place_buffers(model, device)
    hidden = [
        enter_block(model, family, 0, {"input_ids": batch.to(device, torch.long)})["hidden_states"]
        for batch in tokens.split(EMBED_BATCH)
    ]
    return torch.cat(hidden)


def _fill_block(
    block: nn.Module, family: Family, folder: Path, index: int, dtype: torch.dtype, device: torch.device | str
) -> None:
    prefix = family.block_prefix(index)
    found = {name.removeprefix(prefix): tensor for name, tensor in read_tensors(folder, prefix).items()}
    _fill(block, found, f"{folder}: block {index}", dtype, device)


def _fill_rest(
    model: Any, part: nn.Module, family: Family, folder: Path, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Load every weight of `part` of the model outside its blocks, a module at a time; tied ones are read once."""
    prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if module is part)
    paths = {name.rpartition(".")[0] for name, _ in part.named_parameters()}
    for path in sorted(path for path in paths if not f"{prefix}{path}.".startswith(f"{family.blocks}.")):
        module = part.get_submodule(path)
        start = f"{prefix}{path}." if path else prefix
        own = {start + name: name for name, _ in module.named_parameters(recurse=False)}
        found = {own[name]: tensor for name, tensor in read_selected(folder, own.__contains__).items()}
        _fill(module, found, f"{folder}: {start.rstrip('.')}", dtype, device)
    model.tie_weights()


def _fill(
    module: nn.Module, tensors: dict[str, torch.Tensor], where: str, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Replace the meta parameters of `module` by `tensors`; UserError if one is missing, odd or of another shape."""
    wanted = {name: tuple(p.shape) for name, p in module.named_parameters()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != given:
        odd = sorted(name for name in wanted | given if wanted.get(name) != given.get(name))[0]
        raise UserError(
            f"{where}: tensor {odd} has shape {given.get(odd, 'none: it is missing')}, "
            f"expected {wanted.get(odd, 'no such tensor')} by config.json; fetch the model again."
        )
    module.load_state_dict({name: t.to(device, dtype) for name, t in tensors.items()}, assign=True)
    module.requires_grad_(True)
