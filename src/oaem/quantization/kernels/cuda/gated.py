"""silu(gate) * up, or gelu(gate) * up, in one launch, both gradients in another, for block tuning on a CUDA device."""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

TILE = 1024  # numbers of a program
PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")  # what transformers calls them in every family
# The activations x * sigmoid(v(x)) that the kernels know: v is x, and SCALE (x + CUBIC x^3).
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}
SCALE, CUBIC = tl.constexpr(2 * math.sqrt(2 / math.pi)), tl.constexpr(0.044715)


@triton.jit
def _share(x, GELU: tl.constexpr):
    """sigmoid(v(x))."""
    return tl.sigmoid((x + x * x * x * CUBIC) * SCALE if GELU else x)


@triton.jit
def _bend(x, share, GELU: tl.constexpr):
    """x times the derivative of sigmoid(v(x)), over `share`, which is sigmoid(v(x))."""
    bend = x * (1 - share)
    if GELU:
        bend *= (1 + x * x * CUBIC * 3) * SCALE
    return bend


@triton.jit
def _gate(gate, up, result, gate_row, up_row, columns, GELU: tl.constexpr, N: tl.constexpr):
    """One row's tile of gate and up, whose rows lie so far apart, to result [rows, columns]."""
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * N + tl.arange(0, N)
    inside = i < columns
    x = tl.load(gate + row * gate_row + i, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(up + row * up_row + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + row * columns + i, (x * _share(x, GELU) * y).to(result.dtype.element_ty), mask=inside)


@triton.jit
def _gate_gradients(gradient, gate, up, result, gate_row, up_row, columns, GELU: tl.constexpr, N: tl.constexpr):
    """One row's tile of both gradients, side by side in result [rows, 2 columns]."""
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * N + tl.arange(0, N)
    inside = i < columns
    z = tl.load(gradient + row * columns + i, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(gate + row * gate_row + i, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(up + row * up_row + i, mask=inside, other=0.0).to(tl.float32)
    share = _share(x, GELU)
    place = result + row * 2 * columns + i
    tl.store(place, (z * y * share * (1 + _bend(x, share, GELU))).to(result.dtype.element_ty), mask=inside)
    tl.store(place + columns, (z * x * share).to(result.dtype.element_ty), mask=inside)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        ctx.shape, ctx.gelu = gate.shape, activation == "gelu_tanh"
        # Views where both are columns of one product.
        gate, up = (_rows(part) for part in (gate, up))
        ctx.save_for_backward(gate, up)
        result = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        _gate[_grid(gate)](gate, up, result, gate.stride(0), up.stride(0), gate.shape[1], GELU=ctx.gelu, N=TILE)
        return result.view(ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        rows, columns = gate.shape
        # Side by side, for where both come from one product its gradient is then there as it has to be.
        result = torch.empty(rows, 2 * columns, dtype=gate.dtype, device=gate.device)
        _gate_gradients[_grid(gate)](
            gradient.contiguous(), gate, up, result, gate.stride(0), up.stride(0), columns, GELU=ctx.gelu, N=TILE
        )
        for_gate, for_up = result.chunk(2, 1)
        return for_gate.view(ctx.shape), for_up.view(ctx.shape), None


def _rows(part: Tensor) -> Tensor:
    """[..., columns] as [rows, columns], copied only if the numbers of a row are apart."""
    rows = part.flatten(0, -2)
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _grid(rows: Tensor) -> tuple[int, int]:
    return len(rows), triton.cdiv(rows.shape[1], TILE)


def gated(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """activation(gate) * up for tensors of one shape, computed in float32 and rounded once to the dtype of `gate`.

    activation: a name of `ACTIVATIONS`. KeyError of another.
    """
    if activation not in ACTIVATIONS:
        raise KeyError(activation)
    result: Tensor = _Gated.apply(gate, up, activation)
    return result


def gated_forward(module: Any, activation: str, inputs: Tensor) -> Tensor:
    """The forward of an MLP with that `gate_activation`."""
    result: Tensor = module.down_proj(gated(module.gate_proj(inputs), module.up_proj(inputs), activation))
    return result


def gate_activation(module: nn.Module) -> str | None:
    """Of which of `ACTIVATIONS` `module` computes down_proj(activation(gate_proj(x)) * up_proj(x)); None if of none.

    Decided by an example with numbers for linears.
    """
    if not all(hasattr(module, name) for name in PARTS):
        return None
    gate, up = torch.linspace(-3, 3, 8), torch.linspace(2, 5, 8)
    linears = {"gate_proj": lambda _: gate, "up_proj": lambda _: up, "down_proj": lambda inputs: 2 * inputs}
    example = SimpleNamespace(**linears, act_fn=module.act_fn)
    try:
        found = type(module).forward(example, torch.zeros(8))
    except AttributeError:  # it needs more than these parts
        return None
    if not isinstance(found, Tensor):
        return None
    # The exact gelu is off from the one by tanh by a tenth at -3 and by 0.6 % at -2.1; ways to write the latter by less
    # than 3e-5, which is the rounding of 1 + tanh at -3.
    return next((name for name, of in ACTIVATIONS.items() if torch.allclose(found, 2 * of(gate) * up, rtol=1e-4)), None)
