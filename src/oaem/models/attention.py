"""How a model attends: the definition, and the choice of a fast path for whole models and blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oaem.numerics.fast_paths import fast_path


@fast_path("cpu", "oaem.models.kernels.cpu.attention:use_cpu_attention")
def use_fast_attention(module: nn.Module) -> None:
    """Let a transformers model or block attend by the fast path of its device where it would use torch's own.

    For good: it has one way to attend, whoever runs it. Without a fast path it stays as it is.
    """


def causal_attention_reference(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """The definition, in the dtype of the inputs, with autograd's own gradient."""
    shared = query.shape[1] // key.shape[1]
    scores = scaling * query @ key.repeat_interleave(shared, dim=1).transpose(2, 3)
    future = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
    return (weights @ value.repeat_interleave(shared, dim=1)).transpose(1, 2)
