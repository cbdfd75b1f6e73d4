"""The rotary embedding of queries and keys in one launch, its gradient in another, for block tuning on a CUDA device.

transformers writes it as five operations for the queries and five for the keys, in float32 because cosines and sines
are float32 there, and autograd takes some twenty for their gradients.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FUNCTION = "apply_rotary_pos_emb"  # what every model of transformers calls its own
Pair = tuple[Tensor, Tensor]


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The formula: `states` [batch, heads, tokens, d] turned by cos and sin [batch or 1, tokens, d], in halves of d."""
    low, high = states.chunk(2, -1)
    return states * cos[:, None] + torch.cat([-high, low], -1) * sin[:, None]


@triton.jit
def _turn(
    source, target, cos, sin, heads, half, H: tl.constexpr, D: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """One token's heads [heads, 2 half] from source to target."""
    h, d = tl.arange(0, H)[:, None], tl.arange(0, D)[None, :]
    inside = (h < heads) & (d < half)
    place = h * 2 * half + d
    low = tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + place + half, mask=inside, other=0.0).to(tl.float32)
    cos_low, cos_high = tl.load(cos + d, mask=d < half, other=0.0), tl.load(cos + half + d, mask=d < half, other=0.0)
    sin_low, sin_high = tl.load(sin + d, mask=d < half, other=0.0), tl.load(sin + half + d, mask=d < half, other=0.0)
    if BACK:
        first, second = low * cos_low + high * sin_high, high * cos_high - low * sin_low
    else:
        first, second = low * cos_low - high * sin_low, high * cos_high + low * sin_high
    tl.store(target + place, first.to(target.dtype.element_ty), mask=inside)
    tl.store(target + place + half, second.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_both(
    query, key, query_result, key_result, cos, sin, query_row, key_row, query_heads, key_heads, half, angles,
    Q: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """One token of queries and keys, whose tokens lie so far apart.

    angles: how many rows cos and sin have; batches may share them.
    """
    row = tl.program_id(0).to(tl.int64)
    width = 2 * half
    cos += row % angles * width
    sin += row % angles * width
    _turn(query + row * query_row, query_result + row * query_heads * width, cos, sin, query_heads, half, Q, D, BACK)
    _turn(key + row * key_row, key_result + row * key_heads * width, cos, sin, key_heads, half, K, D, BACK)


def _launch(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Pair:
    """Queries and keys [batch, heads, tokens, d] turned, or gradients turned back; a token's heads lie together."""
    batch, query_heads, tokens, width = query.shape
    key_heads = key.shape[1]
    sources = [_tokens(part) for part in (query, key)]
    results = [torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in sources]
    _rotate_both[(batch * tokens,)](
        *sources, *results, cos, sin, sources[0].stride(0), sources[1].stride(0), query_heads, key_heads, width // 2,
        cos.shape[0] * tokens, Q=triton.next_power_of_2(query_heads), K=triton.next_power_of_2(key_heads),
        D=triton.next_power_of_2(width // 2), BACK=back,
    )  # fmt: skip
    turned_query, turned_key = (part.unflatten(0, (batch, tokens)).transpose(1, 2) for part in results)
    return turned_query, turned_key


def _tokens(states: Tensor) -> Tensor:
    """[batch, heads, tokens, d] as [batch x tokens, heads, d], a view where heads are columns of a product."""
    rows = states.transpose(1, 2).flatten(0, 1)
    return rows if rows.stride()[1:] == (rows.shape[2], 1) else rows.contiguous()


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Pair:
        ctx.save_for_backward(cos, sin)
        return _launch(query, key, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return *_launch(query, key, cos, sin, back=True), None, None


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """`rotate` of queries and of keys [batch, heads, tokens, d], in their own dtypes, by float32 cos and sin."""
    turned: Pair = _Rotary.apply(query, key, cos.contiguous(), sin.contiguous())
    return turned


@contextmanager
def fused_rotary(block: nn.Module) -> Iterator[None]:
    """Let the models that `block` is made of call `rotary` where their own function computes the same.

    A model's function is a global name of its module, so other blocks of that model are fused meanwhile as well.
    """
    with ExitStack() as stack:
        for module in {sys.modules[type(part).__module__] for part in block.modules()}:
            own = getattr(module, FUNCTION, None)
            if own is not None and turns_halves(own):
                setattr(module, FUNCTION, partial(_rotary_or, own))
                stack.callback(setattr, module, FUNCTION, own)
        yield


def _rotary_or(
    own: Callable[..., Pair], query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **options: Any
) -> Pair:
    """`rotary` for a plain call that turns whole heads, else the model's own."""
    whole = cos.shape[-1] == query.shape[-1] == key.shape[-1] and cos.dtype == sin.dtype == torch.float32
    if rest or options or not whole:
        return own(query, key, cos, sin, *rest, **options)
    return rotary(query, key, cos, sin)


@cache
def turns_halves(function: Callable[..., Pair]) -> bool:
    """Whether a model's function computes `rotate`, by an example: some models turn neighbours, or part of a head."""
    query, key = torch.linspace(-1, 1, 48).view(1, 2, 3, 8), torch.linspace(1, 2, 24).view(1, 1, 3, 8)
    cos, sin = torch.linspace(0, 1, 24).view(1, 3, 8), torch.linspace(-2, 1, 24).view(1, 3, 8)
    try:
        found = function(query, key, cos, sin)
    except (IndexError, RuntimeError, TypeError, ValueError):  # another function of that name
        return False
    return all(torch.allclose(ours, rotate(part, cos, sin)) for ours, part in zip(found, (query, key), strict=True))
