"""The Triton kernels of PV-tuning, through Triton's interpreter, against their plain twins."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton", minversion="3.7", reason="needs Triton's interpreter, in a version that knows numpy 2.4")
if os.environ.get("TRITON_INTERPRET") != "1":
    # Read when Triton is first imported, which transformers may do, so only tests/conftest.py can set it in time.
    pytest.skip("TRITON_INTERPRET=1 is not set: the kernels run on CUDA (tests/gpu)", allow_module_level=True)

from oaem.pv.kernels.cuda import attention_gradients
from oaem.pv.kernels.cuda import lamb as lamb_triton
from oaem.pv.kernels.cuda import loss as loss_triton
from oaem.pv.kernels.cuda.reencode import squared_distances_triton, walk_triton
from oaem.pv.lamb import Lamb, lamb_step_reference
from oaem.pv.loss import kl_divergence_reference
from oaem.pv.straight_through import reencode_reference
from oaem.quantization.weight import dequantize


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("token_chunk", [2, 100])
def test_divergence_and_gradients(monkeypatch: pytest.MonkeyPatch, token_chunk: int) -> None:
    """float32 throughout, several tiles of the vocabulary: 1e-5 of the largest entry, as for the plain twin."""
    monkeypatch.setattr(loss_triton, "TILE", 32)
    hidden, teacher_hidden = 3 * randn(11, 6).requires_grad_(), randn(11, 6, seed=1)
    hidden = hidden.detach().requires_grad_()
    head, teacher_head = (3 * randn(77, 6, seed=2)).requires_grad_(), randn(77, 6, seed=3)
    expected = 0.37 * kl_divergence_reference(hidden, head, teacher_hidden, teacher_head)
    wanted = torch.autograd.grad(expected, [hidden, head])
    head.grad = before = randn(77, 6, seed=4)
    before = before.clone()
    loss, gradient = loss_triton.kl_with_gradients_triton(hidden, head, teacher_hidden, teacher_head, token_chunk, 0.37)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, wanted[0], rtol=0, atol=1e-5 * float(wanted[0].abs().max()))
    torch.testing.assert_close(head.grad - before, wanted[1], rtol=0, atol=1e-5 * float(wanted[1].abs().max()))


def test_divergence_of_logits_far_apart_and_of_equal_ones() -> None:
    """exp never overflows; the divergence of a model from itself is zero, as is its gradient."""
    logits = torch.tensor([[3e4, -3e4, 0.0], [-5e3, -5e3, -5e3]])
    again = logits.clone()
    assert not loss_triton.divergence_in_place(again, logits, 1.0).any() and not again.any()
    other = torch.tensor([[-3e4, 3e4, 0.0], [0.0, -5e3, -5e3]])
    losses = loss_triton.divergence_in_place(other, logits, 1.0)
    torch.testing.assert_close(losses, torch.tensor([6e4, 5e3 * 2 / 3 - float(torch.tensor(3.0).log())]))
    torch.testing.assert_close(other, torch.tensor([[-1.0, 1.0, 0.0], [2 / 3, -1 / 3, -1 / 3]]))


def test_a_logit_that_is_not_finite_shows_in_the_loss() -> None:
    for bad in (float("nan"), float("inf")):
        logits = randn(2, 5)
        logits[1, 2] = bad
        losses = loss_triton.divergence_in_place(logits, randn(2, 5, seed=1), 1.0)
        assert losses.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_lamb(monkeypatch: pytest.MonkeyPatch, beta1: float) -> None:
    """float32 against the definition in float64, several tiles: 1e-5."""
    monkeypatch.setattr(lamb_triton, "TILE", 32)
    lamb = Lamb(lr=0.02, beta1=beta1, beta2=0.95, eps=1e-6)
    parameter = randn(7, 13)
    expected, first, second = parameter.double(), torch.zeros(7, 13).double(), torch.zeros(7, 13).double()
    moments = lamb.moments(parameter)
    for step in range(1, 8):
        gradient = randn(7, 13, seed=step) * 10.0 ** (step % 5 - 3)
        lamb_triton.lamb_step_triton(parameter, gradient, moments, step, lamb)
        expected, first, second = lamb_step_reference(expected, gradient.double(), first, second, step, lamb)
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moments["second"].double(), second, rtol=1e-5, atol=0)


def test_lamb_without_a_parameter_or_without_a_gradient() -> None:
    lamb = Lamb(lr=0.1, beta1=0.0, beta2=0.75, eps=1e-6)
    zero, still = torch.zeros(4), torch.ones(4)
    lamb_triton.lamb_step_triton(zero, torch.ones(4), lamb.moments(zero), 1, lamb)
    torch.testing.assert_close(zero, torch.full((4,), -0.1), rtol=1e-5, atol=0)
    lamb_triton.lamb_step_triton(still, torch.zeros(4), lamb.moments(still), 1, lamb)
    assert torch.equal(still, torch.ones(4))


@pytest.mark.parametrize(("m", "size", "width"), [(2, 16, 8), (3, 64, 6)])
def test_distances(m: int, size: int, width: int) -> None:
    codes = torch.randint(size, (5, 9, m), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    codebooks, scales, buffer = randn(m, size, width), randn(5, seed=2), randn(5, 9 * width, seed=3)
    found = squared_distances_triton(codes, codebooks, scales, buffer)
    expected = (buffer - dequantize(codes, codebooks, scales)).view(-1, width).square().sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("m", "size", "width"), [(1, 16, 4), (2, 40, 8), (3, 8, 6)])
def test_walks(m: int, size: int, width: int) -> None:
    """Every group takes part, so the codes equal those of the definition."""
    draws = torch.Generator().manual_seed(m)
    codes = torch.randint(size, (5, 9, m), generator=draws).to(torch.uint8)
    codebooks, scales = randn(m, size, width), randn(5, seed=2)
    buffer = randn(5, 9 * width, seed=3)
    order = torch.randperm(m, generator=draws).tolist()
    expected, before = reencode_reference(codes, codebooks, scales, buffer, 1.0, order), codes.clone()
    chosen = torch.randperm(45, generator=draws)
    changed = walk_triton(codes, codebooks, scales, buffer, chosen, order)
    assert torch.equal(codes.int(), expected.int())
    assert int(changed) == int((codes != before).sum()) > 0
    scales[2], codes = 0, before.clone()
    walk_triton(codes, codebooks, scales, buffer, chosen[:20], order)
    untouched = torch.ones(45, dtype=torch.bool).index_fill(0, chosen[:20], False)
    assert torch.equal(codes.view(45, m)[untouched], before.view(45, m)[untouched])
    assert int(codes.max()) < size


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
