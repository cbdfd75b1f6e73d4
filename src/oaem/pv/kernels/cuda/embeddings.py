"""Embeddings of the student on a CUDA device: their gradient is summed row by row, with the same bits on every run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def prepare_embeddings(model: Any) -> None:
    """Put a `StudentEmbedding` in the place of a transformers model's input embeddings."""
    plain = model.get_input_embeddings()
    if type(plain) is nn.Embedding:  # another kind may do more than look up
        model.set_input_embeddings(StudentEmbedding(plain))


class StudentEmbedding(nn.Module):
    """Embeddings whose gradient is added, row by row, to that of the sequences before.

    autograd would fill a gradient as large as the vocabulary for each sequence and add that.
    """

    def __init__(self, plain: nn.Embedding) -> None:
        super().__init__()
        self.weight, self.padding_idx = plain.weight, plain.padding_idx

    def forward(self, tokens: Tensor) -> Tensor:
        """[...] -> [..., hidden]."""
        rows: Tensor = _Rows.apply(tokens, self.weight, self.padding_idx)
        return rows


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.weight, ctx.padding_idx = weight, padding_idx
        return functional.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        (tokens,), weight = ctx.saved_tensors, ctx.weight
        if ctx.padding_idx is not None:
            gradient = gradient.masked_fill((tokens == ctx.padding_idx)[..., None], 0)
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_put_((tokens.flatten(),), gradient.flatten(0, -2), accumulate=True)
        return None, None, None
