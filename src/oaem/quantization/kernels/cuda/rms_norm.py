"""The RMS norm before a bfloat16 product, for block tuning on a CUDA device: a launch forward, two backward."""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PROGRAMS = 528  # that share the rows of a gradient: four for each multiprocessor of an H100; decides its rounding


@triton.jit
def _norm(inputs, weight, result, roots, width, epsilon, N: tl.constexpr):
    """One row of inputs [rows, width]; roots [rows] gets 1 / its root mean square."""
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, N)
    inside = i < width
    x = tl.load(inputs + row * width + i, mask=inside, other=0.0).to(tl.float32)
    root = 1 / tl.sqrt(tl.sum(x * x) / width + epsilon)
    y = x * root * tl.load(weight + i, mask=inside, other=0.0)
    tl.store(result + row * width + i, y.to(result.dtype.element_ty), mask=inside)
    tl.store(roots + row, root)


@triton.jit
def _norm_gradients(
    gradient, inputs, weight, roots, for_inputs, for_weight, rows, width, BOTH: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The program's row of for_weight [programs, width]; of BOTH, every so manieth row of for_inputs [rows, width]."""
    i = tl.arange(0, N)
    inside = i < width
    factor = tl.load(weight + i, mask=inside, other=0.0)
    total = tl.zeros((N,), tl.float32)
    place = tl.program_id(0).to(tl.int64) * width + i
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        z = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        root = tl.load(roots + row)
        x = tl.load(inputs + place, mask=inside, other=0.0).to(tl.float32) * root
        total += z * x
        if BOTH:
            along = z * factor
            slope = root * (along - x * (tl.sum(along * x) / width))
            tl.store(for_inputs + place, slope.to(for_inputs.dtype.element_ty), mask=inside)
        place += tl.num_programs(0) * width
    tl.store(for_weight + tl.program_id(0).to(tl.int64) * width + i, total, mask=inside)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inputs, width = inputs.contiguous(), len(weight)
        result = torch.empty_like(inputs, dtype=torch.bfloat16)
        roots = torch.empty(inputs.numel() // width, device=inputs.device)
        _norm[(len(roots),)](inputs, weight, result, roots, width, epsilon, **_shape(width))
        ctx.save_for_backward(inputs, weight, roots)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        inputs, weight, roots = ctx.saved_tensors
        rows, width = len(roots), len(weight)
        programs = min(PROGRAMS, rows)
        both = ctx.needs_input_grad[0]  # not those of a block's first norm
        for_inputs = torch.empty_like(inputs) if both else inputs
        for_weight = torch.empty(programs, width, device=inputs.device)
        _norm_gradients[(programs,)](
            gradient.contiguous(), inputs, weight, roots, for_inputs, for_weight, rows, width, BOTH=both,
            **_shape(width),
        )  # fmt: skip
        return for_inputs if both else None, for_weight.sum(0), None


def rms_norm(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight * inputs / (root mean square of each row), bfloat16; computed in float32 and rounded once.

    inputs: floating point [..., width]. weight: float32 [width]. epsilon is added to the mean square.
    """
    result: Tensor = _RMSNorm.apply(inputs, weight, epsilon)
    return result


def _shape(width: int) -> dict[str, int]:
    columns = triton.next_power_of_2(width)
    return {"N": columns, "num_warps": min(8, max(1, columns // 256))}
