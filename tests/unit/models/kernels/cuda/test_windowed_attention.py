"""Attention with a sliding window in Triton, through Triton's interpreter, against autograd of the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("tests.unit.interpreter")

from transformers.masking_utils import sdpa_mask, sliding_window_causal_mask_function

from oaem.models.attention_switch import fits
from oaem.models.kernels.cuda.attention_gradients import attention_gradients_triton
from oaem.models.kernels.cuda.windowed_attention import windowed_attention_triton
from tests.unit.interpreter import randn


def operands(heads: int, key_heads: int, tokens: int, width: int) -> tuple[list[Tensor], Tensor]:
    """Queries as they come out of a projection, keys and values for two sequences, and a gradient of the result."""
    query = randn(2, tokens, heads, width).transpose(1, 2)
    key, value = (randn(2, key_heads, tokens, width, seed=seed) for seed in (1, 2))
    return [query, key, value], randn(2, heads, tokens, width, seed=3)


def definition(parts: list[Tensor], scaling: float, window: int) -> tuple[Tensor, Tensor]:
    """The result and the log-sums, under the mask that transformers makes of such a window."""
    query, key, value = parts
    shared, tokens = query.shape[1] // key.shape[1], query.shape[2]
    seen = sdpa_mask(1, tokens, tokens, mask_function=sliding_window_causal_mask_function(window), local_size=window)
    scores = scaling * query @ key.repeat_interleave(shared, 1).transpose(2, 3)
    if seen is not None:  # else torch's own attention is told that it is causal, and no more
        scores = scores.masked_fill(~seen, float("-inf"))
    else:
        scores = scores.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(3) @ value.repeat_interleave(shared, 1), scores.logsumexp(3)


def close(found: Tensor, exact: Tensor) -> None:
    """1e-4 of the largest entry, or of 1: a query that sees itself alone has no gradient."""
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4 * max(1.0, float(exact.abs().max())))


# Tiles have 64 tokens, those of vectors of 256 numbers 32: windows within one, of one, of several and of no multiple.
@pytest.mark.parametrize(
    ("heads", "key_heads", "tokens", "width", "window"),
    [
        (2, 2, 128, 16, 1),
        (2, 1, 128, 16, 2),
        (6, 2, 256, 16, 40),
        (2, 2, 256, 16, 63),
        (4, 2, 256, 16, 64),
        (2, 1, 256, 16, 65),
        (2, 1, 256, 16, 66),
        (4, 1, 320, 16, 128),
        (2, 1, 320, 32, 150),
        (2, 1, 256, 16, 255),
        (2, 1, 128, 256, 20),
        (4, 1, 128, 256, 32),
        (2, 1, 128, 256, 75),
    ],
)
def test_a_window_and_its_gradients(heads: int, key_heads: int, tokens: int, width: int, window: int) -> None:
    """float32 operands against autograd, and a second run has the same bits."""
    parts, incoming = operands(heads, key_heads, tokens, width)
    assert fits(parts[0])
    leaves = [part.clone().requires_grad_() for part in parts]
    exact, exact_logs = definition(leaves, 0.3, window)
    wanted = torch.autograd.grad(exact, leaves, incoming)
    result, logs = windowed_attention_triton(*parts, 0.3, window)
    assert result.transpose(1, 2).is_contiguous()
    found = attention_gradients_triton(incoming, *parts, result, logs, 0.3, window)
    for ours, right in zip((result, logs, *found), (exact, exact_logs, *wanted), strict=True):
        close(ours, right.detach())
    assert all(map(torch.equal, (result, logs), windowed_attention_triton(*parts, 0.3, window)))
    assert all(map(torch.equal, found, attention_gradients_triton(incoming, *parts, result, logs, 0.3, window)))


def test_wide_heads_without_a_window() -> None:
    """The gradient of vectors of 256 numbers, whose tiles are smaller."""
    parts, incoming = operands(4, 2, 128, 256)
    leaves = [part.clone().requires_grad_() for part in parts]
    exact, logs = definition(leaves, 0.1, 1000)
    torch.testing.assert_close(
        exact, functional.scaled_dot_product_attention(*leaves, is_causal=True, scale=0.1, enable_gqa=True)
    )
    found = attention_gradients_triton(incoming, *parts, exact.detach(), logs.detach(), 0.1)
    assert all(part.transpose(1, 2).is_contiguous() for part in found)
    for ours, right in zip(found, torch.autograd.grad(exact, leaves, incoming), strict=True):
        close(ours, right)


def test_hidden_scores_may_be_of_any_size() -> None:
    """Keys that a tile loads and a query must not see, with scores that overflow; float32, to 1e-4."""
    parts, incoming = operands(2, 1, 128, 16)
    parts[1][:, :, 40:50] *= 1e4
    query, key, value = parts
    result, logs = windowed_attention_triton(query, key, value, 1.0, 10)
    found = attention_gradients_triton(incoming, query, key, value, result, logs, 1.0, 10)
    assert all(bool(part.isfinite().all()) for part in (result, logs, *found))
    exact, exact_logs = definition(parts, 1.0, 10)
    close(result, exact)
    close(logs, exact_logs)


def test_narrow_operands_are_rounded_where_they_are_multiplied() -> None:
    """In float16, for the interpreter multiplies no bfloat16; sums are float32: to 0.1 % in the mean."""
    parts, incoming = operands(4, 2, 192, 32)
    halves = [part.half() for part in parts]
    leaves = [part.float().requires_grad_() for part in halves]
    exact, _ = definition(leaves, 0.2, 70)
    wanted = torch.autograd.grad(exact, leaves, incoming.half().float())
    result, logs = windowed_attention_triton(*halves, 0.2, 70)
    found = attention_gradients_triton(incoming.half(), *halves, result, logs, 0.2, 70)
    assert {part.dtype for part in (result, *found)} == {torch.float16} and logs.dtype == torch.float32
    for ours, right in zip((result, *found), (exact, *wanted), strict=True):
        assert float((ours - right).detach().norm() / right.detach().norm()) < 1e-3
