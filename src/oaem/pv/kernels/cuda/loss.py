"""KL(teacher || student) and its gradients on a CUDA device: the fast twin of `loss.backward_kl`.

Logits stay in the dtype of the products. One program reads a token's logits twice: for the log-sums of teacher and
student, then for the divergence and its gradient, which replaces the student's logits. Sums are in float32 and in a
fixed order. Weighing and the mean over tokens are folded into the gradient, and the head's is added where it belongs.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from oaem.pv.products import add_product

TILE = 2048  # logits at a time
# `loss.kl_divergence` holds three float32 tensors of a chunk beside the two of logits; here are the logits alone.
CHUNKS_AT_ONCE = 4
NOTHING = tl.constexpr(-1.0e30)  # finite, so that no difference of two of them is undefined


@triton.jit
def _add_to_sums(peak, total, values):
    """Running maximum and sum of exp(value - maximum) of each lane, with one exponential."""
    less = tl.exp(-tl.abs(values - peak))
    total = tl.where(values > peak, total * less + 1.0, total + less)
    return tl.where(values > peak, values, peak), total


@triton.jit
def _log_sum(peak, total):
    """The maximum, and the logarithm of the sum that is left; their own sum would be less exact."""
    highest = tl.max(peak)
    return highest, tl.log(tl.sum(total * tl.exp(peak - highest)))


@triton.jit
def _divergence(student, teacher, losses, factor, vocabulary, N: tl.constexpr):
    """The divergence of one token to losses, its gradient times `factor` over the student's logits."""
    row = tl.program_id(0).to(tl.int64)
    student += row * vocabulary
    teacher += row * vocabulary
    peak_s = tl.full((N,), NOTHING, tl.float32)
    peak_t = tl.full((N,), NOTHING, tl.float32)
    sum_s, sum_t = tl.zeros((N,), tl.float32), tl.zeros((N,), tl.float32)
    for start in range(0, vocabulary, N):
        word = start + tl.arange(0, N)
        inside = word < vocabulary
        peak_s, sum_s = _add_to_sums(peak_s, sum_s, tl.load(student + word, mask=inside, other=NOTHING).to(tl.float32))
        peak_t, sum_t = _add_to_sums(peak_t, sum_t, tl.load(teacher + word, mask=inside, other=NOTHING).to(tl.float32))
    high_s, log_s = _log_sum(peak_s, sum_s)
    high_t, log_t = _log_sum(peak_t, sum_t)
    loss = tl.zeros((N,), tl.float32)
    for start in range(0, vocabulary, N):
        word = start + tl.arange(0, N)
        inside = word < vocabulary
        own = tl.load(student + word, mask=inside, other=NOTHING).to(tl.float32) - high_s - log_s
        wanted = tl.load(teacher + word, mask=inside, other=NOTHING).to(tl.float32) - high_t - log_t
        probability = tl.exp(wanted)
        loss += probability * (wanted - own)
        slope = (tl.exp(own) - probability) * factor
        tl.store(student + word, slope.to(student.dtype.element_ty), mask=inside)
    tl.store(losses + row, tl.sum(loss))


def divergence_in_place(student_logits: Tensor, teacher_logits: Tensor, factor: float) -> Tensor:
    """KL of each token, float32 [tokens]; `student_logits` become the gradient of factor times their sum.

    Both logits: contiguous [tokens, vocabulary] of one floating dtype.
    """
    tokens, vocabulary = student_logits.shape
    losses = torch.empty(tokens, device=student_logits.device)
    _divergence[(tokens,)](student_logits, teacher_logits, losses, factor, vocabulary, N=TILE, num_warps=16)
    return losses


@torch.no_grad()
def kl_with_gradients_triton(
    hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor, token_chunk: int, share: float
) -> tuple[Tensor, Tensor]:
    """`share` times the divergence and its gradient by `hidden`; that by `head` is added to `head.grad`.

    Shapes and dtypes as for `loss.kl_divergence`.
    """
    dtype, tokens = teacher_head.dtype, hidden.shape[0]
    narrow_hidden, narrow_head = hidden.to(dtype), head.to(dtype)
    teacher_hidden = teacher_hidden.to(dtype)
    if head.grad is None:
        head.grad = torch.zeros_like(head)
    hidden_gradient, losses = torch.empty_like(hidden), []
    for part in torch.arange(tokens).split(token_chunk * CHUNKS_AT_ONCE):
        place = slice(int(part[0]), int(part[-1]) + 1)
        logits = narrow_hidden[place] @ narrow_head.T
        losses.append(divergence_in_place(logits, teacher_hidden[place] @ teacher_head.T, share / tokens))
        hidden_gradient[place] = logits @ narrow_head
        add_product(head.grad, logits, narrow_hidden[place])
    return torch.cat(losses).sum() * (share / tokens), hidden_gradient


def backward_kl_triton(
    hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor, token_chunk: int, share: float
) -> Tensor:
    """See `loss.backward_kl`."""
    loss, gradient = kl_with_gradients_triton(hidden, head, teacher_hidden, teacher_head, token_chunk, share)
    hidden.backward(gradient)
    return loss
