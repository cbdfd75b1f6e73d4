"""OA-EM: expectation-maximisation of one codebook under the layer's own output metric (section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from oaem.config.settings import LayerSettings, OaemSettings
from oaem.quantization.clusters import best_entries
from oaem.quantization.m_step import adam_m_step, exact_m_step, statistics

MAPPED_AT_ONCE = 2**26  # Numbers in the E-step's tables at once.


def hessian_blocks(hessian: Tensor, group_size: int, damping: float) -> Tensor:
    """H_j + lambda I for every input group j, [in/g, g, g]; lambda is `damping` times the mean diagonal of H.

    A hessian that is zero throughout says nothing about the output, so the blocks are then identities: plain distance.
    """
    tiles = hessian.unflatten(0, (-1, group_size)).unflatten(2, (-1, group_size))
    blocks = tiles.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    mean = blocks.diagonal(dim1=1, dim2=2).mean()
    added = torch.where(mean > 0, damping * mean, torch.ones_like(mean))
    return blocks + added * torch.eye(group_size, dtype=hessian.dtype, device=hessian.device)


def oaem(
    vectors: Tensor,
    blocks: Tensor,
    centroids: Tensor,
    codes: Tensor,
    settings: LayerSettings,
    row_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The paper's refinement: M-steps by Adam."""
    return oaem_refine(vectors, blocks, centroids, codes, settings.oaem, False, row_weights)


def oaem_exact(
    vectors: Tensor,
    blocks: Tensor,
    centroids: Tensor,
    codes: Tensor,
    settings: LayerSettings,
    row_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same with M-steps solved exactly; not in the paper."""
    return oaem_refine(vectors, blocks, centroids, codes, settings.oaem, True, row_weights)


@torch.no_grad()
def oaem_refine(
    vectors: Tensor,
    blocks: Tensor,
    centroids: Tensor,
    codes: Tensor,
    settings: OaemSettings,
    exact: bool,
    row_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Centroids [K, g] and codes [in/g, out] after `settings.rounds` of M-step and E-step.

    vectors: [in/g, out, g], group-major. blocks: damped H_j [in/g, g, g]. exact: solve the M-step instead of Adam.

    Each round lowers the mean over groups i of (v_i - c)^T H_j(i) (v_i - c), the paper's objective, in which every row
    counts the same. With `row_weights` w [out], one on average, it is the mean of w_o(i) (v_i - c)^T H_j(i) (v_i - c):
    for w in proportion to s_o^2 (`squared_scale_weights`) that is, but for a constant factor, the output error
    tr((W^ - W) H (W^ - W)^T) with H cut to its damped diagonal blocks. Only the M-step changes: a group's weight is the
    same whichever entry it takes.
    """
    for _ in range(settings.rounds):
        curvature, pull = statistics(vectors, blocks, codes, len(centroids), row_weights)
        if exact:
            centroids = exact_m_step(curvature, pull, centroids)
        else:
            centroids = adam_m_step(curvature, pull, centroids, codes.numel(), settings)
        codes = e_step(vectors, blocks, centroids)
    return centroids, codes


def e_step(vectors: Tensor, blocks: Tensor, centroids: Tensor) -> Tensor:
    """argmin_k (v - c_k)^T H_j (v - c_k) for vectors [in/g, out, g] -> int32 [in/g, out].

    It expands to c^T H_j c - 2 v^T H_j c: a matrix product for the tables and another one for the scores.
    """
    size, group_size = centroids.shape
    step = max(1, MAPPED_AT_ONCE // (size * group_size))
    codes = []
    for part, block in zip(vectors.split(step), blocks.split(step), strict=True):
        mapped = block @ centroids.T  # H_j c [groups, g, K]
        codes.append(best_entries(part, -2 * mapped, (mapped * centroids.T).sum(1)))
    return torch.cat(codes)
