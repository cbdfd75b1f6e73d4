"""What the real model passes to each of its blocks, and running a block alone with exactly that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from oaem.models.families import family_of
from oaem.models.load import load_config
from oaem.models.skeleton import build_skeleton, enter_block, place_buffers

# Caches belong to generation; a block called without them computes the same.
_DROPPED = ("hidden_states", "past_key_values", "past_key_value", "use_cache")


def block_arguments(
    folder: Path | str, index: int, length: int, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Any]:
    """Keyword arguments that block `index` gets in the model's own forward of one sequence of `length` tokens.

    Position embeddings, masks and the rest have batch size 1 and lie on `device`. No weights are read: none of these
    arguments depend on any.
    """
    config = load_config(folder)
    family = family_of(config)
    model = build_skeleton(config, dtype)
    place_buffers(model, device)
    nothing = torch.zeros(1, length, config.hidden_size, dtype=dtype, device=device)
    arguments = enter_block(model, family, index, {"inputs_embeds": nothing})
    return {name: value for name, value in arguments.items() if name not in _DROPPED}


def run_block(block: nn.Module, hidden: torch.Tensor, arguments: dict[str, Any], batch: int = 1) -> torch.Tensor:
    """Outputs [n, L, hidden] of `block` for `hidden` [n, L, hidden], `batch` sequences at a time, in the same dtype."""
    pieces = []
    for part in hidden.split(batch):
        output = block(part, **expand(arguments, part.shape[0]))
        pieces.append((output[0] if isinstance(output, tuple) else output).to(hidden.dtype))
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def expand(arguments: Any, batch: int) -> Any:
    """The captured arguments for `batch` sequences: tensors of batch size 1 become views of that batch size."""
    if isinstance(arguments, torch.Tensor):
        return (
            arguments.expand(batch, *arguments.shape[1:])
            if arguments.dim() > 1 and arguments.shape[0] == 1
            else arguments
        )
    if isinstance(arguments, dict):
        return {name: expand(value, batch) for name, value in arguments.items()}
    if isinstance(arguments, tuple | list):
        return type(arguments)(expand(value, batch) for value in arguments)
    return arguments
