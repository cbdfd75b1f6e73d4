"""The RMS norm before a bfloat16 product, for block tuning on a CUDA device: a launch forward, two backward."""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

PROGRAMS = 528  # that share the rows of a gradient: four for each multiprocessor of an H100; decides its rounding
OFFSETS = (0, 1)  # what families add to a norm's weight before they multiply by it: nothing, or Gemma's one


@triton.jit
def _factor(weight, i, inside, OFFSET: tl.constexpr):
    factor = tl.load(weight + i, mask=inside, other=0.0)
    if OFFSET:  # no operation at all where it is 0
        factor += OFFSET
    return factor


@triton.jit
def _norm(inputs, weight, result, roots, width, epsilon, OFFSET: tl.constexpr, N: tl.constexpr):
    """One row of inputs [rows, width]; roots [rows] gets 1 / its root mean square."""
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, N)
    inside = i < width
    x = tl.load(inputs + row * width + i, mask=inside, other=0.0).to(tl.float32)
    root = 1 / tl.sqrt(tl.sum(x * x) / width + epsilon)
    y = x * root * _factor(weight, i, inside, OFFSET)
    tl.store(result + row * width + i, y.to(result.dtype.element_ty), mask=inside)
    tl.store(roots + row, root)


@triton.jit
def _norm_gradients(
    gradient, inputs, weight, roots, for_inputs, for_weight, rows, width,
    OFFSET: tl.constexpr, BOTH: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The program's row of for_weight [programs, width]; of BOTH, every so manieth row of for_inputs [rows, width]."""
    i = tl.arange(0, N)
    inside = i < width
    factor = _factor(weight, i, inside, OFFSET)
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
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, epsilon: float, offset: int) -> Tensor:
        inputs, width = inputs.contiguous(), len(weight)
        result = torch.empty_like(inputs, dtype=torch.bfloat16)
        roots = torch.empty(inputs.numel() // width, device=inputs.device)
        _norm[(len(roots),)](inputs, weight, result, roots, width, epsilon, OFFSET=offset, **_shape(width))
        ctx.save_for_backward(inputs, weight, roots)
        ctx.offset = offset
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        inputs, weight, roots = ctx.saved_tensors
        rows, width = len(roots), len(weight)
        programs = min(PROGRAMS, rows)
        both = ctx.needs_input_grad[0]  # not those of a block's first norm
        for_inputs = torch.empty_like(inputs) if both else inputs
        for_weight = torch.empty(programs, width, device=inputs.device)
        _norm_gradients[(programs,)](
            gradient.contiguous(), inputs, weight, roots, for_inputs, for_weight, rows, width, OFFSET=ctx.offset,
            BOTH=both, **_shape(width),
        )  # fmt: skip
        return for_inputs if both else None, for_weight.sum(0), None, None


def rms_norm(inputs: Tensor, weight: Tensor, epsilon: float, offset: int = 0) -> Tensor:
    """(offset + weight) * inputs / (root mean square of each row), bfloat16; computed in float32 and rounded once.

    inputs: floating point [..., width]. weight: float32 [width]. epsilon is added to the mean square. offset: 0 or 1.
    """
    if inputs.ndim == 4 and inputs.stride(1) < inputs.stride(2):
        # Heads [batch, heads, tokens, width], a view of a product: taken token by token, as they lie, so that neither
        # these, nor the result when it is rotated, nor a gradient is copied into another order.
        return rms_norm(inputs.transpose(1, 2), weight, epsilon, offset).transpose(1, 2)
    result: Tensor = _RMSNorm.apply(inputs, weight, epsilon, offset)
    return result


def norm_numbers(module: nn.Module) -> tuple[float, int] | None:
    """Epsilon and offset with which `rms_norm` computes what `module`, called an RMS norm, does, by an example.

    None if it computes anything else, or does so with more than a weight and numbers. `module` itself is not called.
    """
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, int | float):
        return None
    weight = module._parameters.get("weight")
    # Of a weight of one number nobody can say how wide the rows are; a forward of its own is not its class's.
    if weight is None or weight.ndim != 1 or len(weight) < 2 or "forward" in vars(module):
        return None
    offset = _offset_by_example(module, len(weight), epsilon)
    return None if offset is None else (float(epsilon), offset)


def _offset_by_example(module: nn.Module, width: int, epsilon: float) -> int | None:
    # Rows of which some are as small as an epsilon's root or smaller, to show where the epsilon enters.
    rows = torch.tensor([[1.0], [1e-3], [1e-6]], device="cpu") * torch.linspace(-1, 2, width, device="cpu")
    weight = torch.linspace(1.5, 0.5, width, device="cpu")
    try:
        found = type(module).forward(_with_numbers_of(module, weight), rows)
    except Exception:  # it needs more than these parts, and how it says so is its own affair
        return None
    if not isinstance(found, Tensor) or (found.shape, found.dtype) != (rows.shape, rows.dtype):
        return None
    plain = functional.rms_norm(rows, (width,), eps=epsilon)
    return next((offset for offset in OFFSETS if torch.allclose(found, (offset + weight) * plain, rtol=1e-4)), None)


def _with_numbers_of(module: nn.Module, weight: Tensor) -> Any:
    """A new module of that class with `weight` and the numbers of `module`, but nothing that a call could change."""
    example = object.__new__(type(module))
    nn.Module.__init__(example)
    vars(example).update({name: value for name, value in vars(module).items() if isinstance(value, int | float | str)})
    vars(example)["_parameters"] = {"weight": weight}
    return example


def _shape(width: int) -> dict[str, int]:
    columns = triton.next_power_of_2(width)
    return {"N": columns, "num_warps": min(8, max(1, columns // 256))}
