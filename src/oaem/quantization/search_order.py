"""The random walk of one beam-search pass, the same for every implementation (section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SearchOrder:
    """The walk of one pass: groups[i] is the i-th input group visited, codebooks[i] the order of codebooks within it.

    groups: int64 [in/g], a permutation. codebooks: int64 [in/g, M], each row a permutation. Both live on the CPU.
    """

    groups: Tensor
    codebooks: Tensor


def draw_order(groups: int, num_codebooks: int, generator: torch.Generator) -> SearchOrder:
    """A random walk over `groups` input groups and their codebooks, drawn from a CPU generator."""
    order = torch.randperm(groups, generator=generator)
    keys = torch.rand(groups, num_codebooks, generator=generator, dtype=torch.float64)
    return SearchOrder(order, keys.argsort(dim=1, stable=True))
