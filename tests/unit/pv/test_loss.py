from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from oaem.pv.loss import kl_divergence, kl_divergence_reference

TOKENS, WIDTH, VOCABULARY = 23, 12, 61


def _inputs(dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    hidden, teacher_hidden = (torch.randn(TOKENS, WIDTH, generator=random).to(dtype) for _ in range(2))
    head, teacher_head = (torch.randn(VOCABULARY, WIDTH, generator=random).to(dtype) for _ in range(2))
    return hidden.requires_grad_(), head.requires_grad_(), teacher_hidden, teacher_head


@pytest.mark.parametrize("token_chunk", [1, 5, 23, 1000])
def test_value_and_gradients_equal_those_of_all_logits_at_once(token_chunk: int) -> None:
    """float32: sums in another order, so 1e-5 of the largest entry."""
    hidden, head, teacher_hidden, teacher_head = _inputs(torch.float32)
    expected = kl_divergence_reference(hidden, head, teacher_hidden, teacher_head)
    wanted = torch.autograd.grad(expected * 0.37, [hidden, head])
    loss = kl_divergence(hidden, head, teacher_hidden, teacher_head, token_chunk)
    found = torch.autograd.grad(loss * 0.37, [hidden, head])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for gradient, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-5 * float(reference.abs().max()))


def test_bfloat16_products_stay_near_the_float32_ones() -> None:
    """bfloat16 carries 8 bits: logits of size 10 are off by some 0.04, gradients by a few hundredths of the largest."""
    hidden, head, teacher_hidden, teacher_head = _inputs(torch.float32)
    expected = kl_divergence_reference(hidden, head, teacher_hidden, teacher_head)
    wanted = torch.autograd.grad(expected, [hidden, head])
    loss = kl_divergence(hidden, head, teacher_hidden.bfloat16(), teacher_head.bfloat16(), 8)
    found = torch.autograd.grad(loss, [hidden, head])
    assert abs(float((loss / expected).detach()) - 1) < 0.02
    for gradient, reference in zip(found, wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert float((gradient - reference).norm() / reference.norm()) < 0.05


def test_is_zero_with_zero_gradient_for_equal_models() -> None:
    hidden, head, _, _ = _inputs(torch.float32)
    loss = kl_divergence(hidden, head, hidden.detach(), head.detach(), 7)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not hidden.grad.any() and not head.grad.any()


def test_is_the_divergence_in_this_direction() -> None:
    """By hand, two words: teacher (3/4, 1/4), student (1/2, 1/2): 3/4 log 3/2 + 1/4 log 1/2."""
    teacher_hidden = torch.tensor([[1.0]])
    teacher_head = torch.tensor([[3.0], [1.0]]).log()
    loss = kl_divergence(torch.ones(1, 1), torch.zeros(2, 1), teacher_hidden, teacher_head, 1)
    torch.testing.assert_close(loss, torch.tensor(0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rtol=1e-5, atol=0)


def test_a_frozen_head_costs_no_gradient() -> None:
    hidden, head, teacher_hidden, teacher_head = _inputs(torch.float32)
    kl_divergence(hidden, head.detach(), teacher_hidden, teacher_head, 7).backward()
    assert hidden.grad is not None and head.grad is None


def test_logits_of_more_than_a_chunk_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    from oaem.pv import loss as module

    seen = []
    original = module._chunk
    monkeypatch.setattr(module, "_chunk", lambda a, b: seen.append(a.shape) or original(a, b))
    kl_divergence(*_inputs(torch.float32), 9)
    assert seen == [(9, VOCABULARY), (9, VOCABULARY), (5, VOCABULARY)]
