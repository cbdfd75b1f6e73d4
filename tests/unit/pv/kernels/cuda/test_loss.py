"""The divergence in Triton, through Triton's interpreter, against its plain twin."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tests.unit.interpreter")

from oaem.pv.kernels.cuda import loss as loss_triton
from oaem.pv.loss import backward_kl, kl_divergence_reference
from tests.unit.interpreter import randn


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


def test_it_reaches_all_that_the_loss_comes_from() -> None:
    source, head = randn(11, 6).requires_grad_(), randn(77, 6, seed=2).requires_grad_()
    teacher = randn(11, 6, seed=1), randn(77, 6, seed=3)
    runs = []
    for path in (loss_triton.backward_kl_triton, backward_kl.oracle):
        source.grad = head.grad = None
        runs.append((path(2 * source, head, *teacher, 4, 0.37), source.grad, head.grad))
    for ours, right in zip(*runs, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)
