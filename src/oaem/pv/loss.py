"""KL(teacher || student), from hidden states and output heads, without ever holding all logits of a sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from oaem.numerics.fast_paths import fast_path


def kl_divergence(
    hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor, token_chunk: int
) -> Tensor:
    """KL(teacher || student) over the vocabulary, mean over tokens; a scalar, differentiable in `hidden` and `head`.

    hidden: [tokens, width], what the student's head reads; head: [vocabulary, width]; the teacher's likewise.
    The products run in the teacher's dtype, as autocast would have it; probabilities and sums in float32.
    At most `token_chunk` tokens have logits at a time. The gradients are made in the forward pass, where the logits
    are at hand, so the backward pass costs nothing and has no derivative of its own.
    """
    loss: Tensor = _ChunkedKL.apply(hidden, head, teacher_hidden, teacher_head, token_chunk)
    return loss


@fast_path("cuda", "oaem.pv.kernels.cuda.loss:backward_kl_triton")
def backward_kl(
    hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor, token_chunk: int, share: float
) -> Tensor:
    """Add the gradients of `share` times the divergence to everything it comes from; returns that product.

    Arguments as for `kl_divergence`; `head` is a leaf.
    """
    loss = kl_divergence(hidden, head, teacher_hidden, teacher_head, token_chunk) * share
    loss.backward()
    return loss.detach()


def kl_divergence_reference(hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor) -> Tensor:
    """The same with all logits at once and autograd's own gradient."""
    student = functional.log_softmax((hidden @ head.T).float(), dim=-1)
    teacher = functional.log_softmax((teacher_hidden @ teacher_head.T).float(), dim=-1)
    return (teacher.exp() * (teacher - student)).sum(dim=-1).mean()


class _ChunkedKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor, token_chunk: int
    ) -> Tensor:
        dtype, tokens = teacher_head.dtype, hidden.shape[0]
        narrow_head = head.to(dtype)
        loss = hidden.new_zeros((), dtype=torch.float32)
        hidden_gradient = torch.empty_like(hidden)
        head_gradient = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        for start in range(0, tokens, token_chunk):
            part = slice(start, start + token_chunk)
            narrow_hidden = hidden[part].to(dtype)
            share, gradient = _chunk(narrow_hidden @ narrow_head.T, teacher_hidden[part].to(dtype) @ teacher_head.T)
            loss += share
            gradient = gradient.div_(tokens).to(dtype)
            hidden_gradient[part] = gradient @ narrow_head
            if head_gradient is not None:
                head_gradient += gradient.T @ narrow_hidden
        ctx.save_for_backward(hidden_gradient, head_gradient)
        return loss / tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, head_gradient = ctx.saved_tensors
        return hidden_gradient * scale, None if head_gradient is None else head_gradient * scale, None, None, None


def _chunk(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Summed KL of some tokens and its gradient by the student's logits; works in place to hold few logits."""
    student = _log_softmax(student_logits)
    teacher = _log_softmax(teacher_logits)
    probabilities = teacher.exp()
    loss = torch.sum(teacher.sub_(student).mul_(probabilities))
    return loss, student.exp_().sub_(probabilities)


def _log_softmax(logits: Tensor) -> Tensor:
    return functional.log_softmax(logits, dim=-1, dtype=torch.float32)
