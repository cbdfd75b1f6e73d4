"""The gradient of attention in Triton, through Triton's interpreter, against autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

pytest.importorskip("tests.unit.interpreter")

from oaem.models.kernels.cuda import attention_gradients
from tests.unit.interpreter import randn


@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (6, 2)])
def test_gradients_of_attention(heads: int, key_heads: int) -> None:
    """float32 operands against autograd: 1e-4 of the largest entry."""
    query = randn(2, 256, heads, 16).transpose(1, 2).requires_grad_()
    key, value = (randn(2, key_heads, 256, 16, seed=seed).requires_grad_() for seed in (1, 2))
    result = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    scores = 0.3 * query @ key.repeat_interleave(heads // key_heads, 1).transpose(2, 3)
    logs = scores.masked_fill(torch.ones(256, 256, dtype=torch.bool).triu(1), float("-inf")).logsumexp(3)
    incoming = randn(2, heads, 256, 16, seed=3)
    wanted = torch.autograd.grad(result, [query, key, value], incoming)
    found = attention_gradients.attention_gradients_triton(
        incoming, *(part.detach() for part in (query, key, value, result, logs)), 0.3
    )
    for ours, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-4 * float(exact.abs().max()))
