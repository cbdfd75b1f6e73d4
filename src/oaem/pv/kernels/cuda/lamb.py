"""A LAMB step in two passes over its tensors, for CUDA devices: the fast twin of `lamb.lamb_step`.

The first pass updates the moments and sums the squares of parameter and update, the second one moves the parameter.
Squares are added up in a fixed order, in float64 from a tile on.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from oaem.pv.lamb import Lamb

TILE = 4096  # numbers of a program


@triton.jit
def _moments(
    parameter, gradient, first, second, squares, beta1, rest1, beta2, rest2, eps, count, AVERAGE: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """New moments of one tile; its sums of squares to squares [2, tiles]."""
    tile = tl.program_id(0)
    place = tile.to(tl.int64) * N + tl.arange(0, N)
    inside = place < count
    slope = tl.load(gradient + place, mask=inside, other=0.0)
    variance = beta2 * tl.load(second + place, mask=inside, other=0.0) + rest2 * slope * slope
    tl.store(second + place, variance, mask=inside)
    if AVERAGE:
        slope = beta1 * tl.load(first + place, mask=inside, other=0.0) + rest1 * slope
        tl.store(first + place, slope, mask=inside)
    update = tl.div_rn(slope, tl.sqrt_rn(variance) + eps)
    value = tl.load(parameter + place, mask=inside, other=0.0)
    tl.store(squares + tile, tl.sum(value * value))
    tl.store(squares + tl.num_programs(0) + tile, tl.sum(tl.where(inside, update * update, 0.0)))


@triton.jit
def _move(parameter, average, second, sums, eps, step_size, count, N: tl.constexpr):
    """One tile of the parameter, by the update times the trust ratio, from the sums of squares [2]."""
    place = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = place < count
    size = tl.sqrt_rn(tl.load(sums).to(tl.float32))
    length = tl.sqrt_rn(tl.load(sums + 1).to(tl.float32))
    defined = (size > 0.0) & (length > 0.0)
    rate = tl.where(defined, tl.div_rn(size, tl.where(defined, length, 1.0)), 1.0) * step_size
    slope = tl.load(average + place, mask=inside, other=0.0)
    variance = tl.load(second + place, mask=inside, other=0.0)
    update = tl.div_rn(slope, tl.sqrt_rn(variance) + eps)
    tl.store(parameter + place, tl.load(parameter + place, mask=inside, other=0.0) - rate * update, mask=inside)


@torch.no_grad()
def lamb_step_triton(parameter: Tensor, gradient: Tensor, moments: dict[str, Tensor], step: int, lamb: Lamb) -> None:
    """`lamb.lamb_step` for float32 tensors; parameter and moments are contiguous."""
    gradient, second = gradient.contiguous(), moments["second"]
    average = moments["first"] if lamb.beta1 else gradient
    count = parameter.numel()
    tiles = triton.cdiv(count, TILE)
    squares = torch.empty(2, tiles, device=parameter.device)
    _moments[(tiles,)](
        parameter, gradient, average, second, squares, lamb.beta1, 1 - lamb.beta1, lamb.beta2, 1 - lamb.beta2,
        lamb.eps, count, AVERAGE=bool(lamb.beta1), N=TILE, num_warps=8,
    )  # fmt: skip
    sums = squares.sum(dim=1, dtype=torch.float64)
    _move[(tiles,)](parameter, average, second, sums, lamb.eps, lamb.step_size(step), count, N=TILE, num_warps=8)
