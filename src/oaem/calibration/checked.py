"""Blocks of the original model, ready to run, and the checks that weights and outputs are numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from oaem.errors import UserError
from oaem.models.attention import use_fast_attention
from oaem.models.load import load_block


def load_for_calibration(model: Path, index: int, dtype: torch.dtype, device: str) -> nn.Module:
    """Block `index` of the model in the folder `model`, as calibration runs it."""
    block = load_block(model, index, dtype, device)
    use_fast_attention(block)
    return block


def require_finite_weights(block: nn.Module, model: Path, index: int, dtype: torch.dtype) -> None:
    """UserError unless every parameter of block `index` is finite."""
    for name, parameter in block.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise UserError(
                f"{model}: block {index}, {name} holds NaN or infinity in {dtype}. The weights are "
                "damaged, or too large for that dtype: fetch the model again, or set its dtype to float32."
            )


def require_finite(outputs: Tensor, whose: str) -> None:
    """UserError unless the outputs of a block are finite; `whose` names the block."""
    if not bool(torch.isfinite(outputs).all()):
        raise UserError(
            f"{whose}: its outputs are not finite. The model's weights or activations "
            f"overflow {outputs.dtype}; check the model, or set its dtype to float32."
        )
