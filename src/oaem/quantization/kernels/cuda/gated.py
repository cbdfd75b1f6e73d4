"""silu(gate) * up in one launch, both gradients in another, for block tuning on a CUDA device."""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

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


@triton.jit
def _gate(gate, up, result, count, N: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = i < count
    x = tl.load(gate + i, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(up + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + i, (x * tl.sigmoid(x) * y).to(result.dtype.element_ty), mask=inside)


@triton.jit
def _gate_gradients(gradient, gate, up, for_gate, for_up, count, N: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = i < count
    z = tl.load(gradient + i, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(gate + i, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(up + i, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(x)
    tl.store(for_gate + i, (z * y * share * (1 + x * (1 - share))).to(for_gate.dtype.element_ty), mask=inside)
    tl.store(for_up + i, (z * x * share).to(for_up.dtype.element_ty), mask=inside)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        result = torch.empty_like(gate)
        _gate[(triton.cdiv(gate.numel(), TILE),)](gate, up, result, gate.numel(), N=TILE)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        for_gate, for_up = torch.empty_like(gate), torch.empty_like(up)
        _gate_gradients[(triton.cdiv(gate.numel(), TILE),)](
            gradient.contiguous(), gate, up, for_gate, for_up, gate.numel(), N=TILE
        )
        return for_gate, for_up


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up for tensors of one shape, computed in float32 and rounded once to the dtype of `gate`."""
    result: Tensor = _Gated.apply(gate, up)
    return result


def gated_forward(module: Any, inputs: Tensor) -> Tensor:
    """The forward of an MLP that `is_gated`."""
    result: Tensor = module.down_proj(gated(module.gate_proj(inputs), module.up_proj(inputs)))
    return result


def is_gated(module: nn.Module) -> bool:
    """Whether `module` computes down_proj(silu(gate_proj(x)) * up_proj(x)), by an example with numbers for linears."""
    if not all(hasattr(module, name) for name in PARTS):
        return False
    gate, up = torch.linspace(-3, 3, 8), torch.linspace(2, 5, 8)
    linears = {"gate_proj": lambda _: gate, "up_proj": lambda _: up, "down_proj": lambda inputs: 2 * inputs}
    example = SimpleNamespace(**linears, act_fn=module.act_fn)
    try:
        found = type(module).forward(example, torch.zeros(8))
    except AttributeError:  # it needs more than these parts
        return False
    return isinstance(found, Tensor) and torch.allclose(found, 2 * functional.silu(gate) * up)
