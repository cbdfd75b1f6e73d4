"""The mean squared error of a block's output and its gradient in one pass, for block tuning on a CUDA device."""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # numbers of a program


@triton.jit
def _squared_error(output, target, gradient, shares, share, count, N: tl.constexpr):
    """One tile of gradient = 2 share (output - target); its part of the mean squared difference to shares [tiles]."""
    tile = tl.program_id(0)
    place = tile.to(tl.int64) * N + tl.arange(0, N)
    inside = place < count
    found = tl.load(output + place, mask=inside, other=0.0).to(tl.float32)
    difference = found - tl.load(target + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(gradient + place, (difference * (2 * share)).to(gradient.dtype.element_ty), mask=inside)
    tl.store(shares + tile, tl.sum(difference * difference) * share)


def squared_error_triton(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error, float64 [], and its gradient in shape and dtype of `output`.

    output, target: floating point of one shape. Differences and a tile's sum in float32, sums of tiles in float64, in a
    fixed order.
    """
    output, target, count = output.contiguous(), target.contiguous(), output.numel()
    gradient = torch.empty_like(output)
    shares = torch.empty(triton.cdiv(count, TILE), device=output.device)
    _squared_error[(len(shares),)](output, target, gradient, shares, 1 / count, count, N=TILE, num_warps=8)
    return shares.sum(dtype=torch.float64), gradient


def backward_squared_error_triton(output: Tensor, target: Tensor) -> Tensor:
    """See `block_tuning.backward_squared_error`."""
    loss, gradient = squared_error_triton(output.detach(), target)
    output.backward(gradient)
    return loss
