"""OA-EM: expectation-maximisation of one codebook under the layer's own output metric (section 3.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oaem.config.settings import OaemSettings
from oaem.quantization.clusters import ClusterSums, best_entries, fits_kernels

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
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


@torch.no_grad()
def oaem_refine(
    vectors: Tensor, blocks: Tensor, centroids: Tensor, codes: Tensor, settings: OaemSettings, exact: bool
) -> tuple[Tensor, Tensor]:
    """Centroids [K, g] and codes [in/g, out] after `settings.rounds` of M-step and E-step.

    vectors: [in/g, out, g], group-major. blocks: damped H_j [in/g, g, g]. exact: solve the M-step instead of Adam.
    """
    for _ in range(settings.rounds):
        curvature, pull = statistics(vectors, blocks, codes, len(centroids))
        if exact:
            centroids = _minimiser(curvature, pull, centroids)
        else:
            centroids = adam_m_step(curvature, pull, centroids, codes.numel(), settings)
        codes = e_step(vectors, blocks, centroids)
    return centroids, codes


def statistics(vectors: Tensor, blocks: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A_k = sum_j n_kj H_j [K, g, g] and b_k = sum_j H_j s_kj [K, g], in float64: all that the M-step needs to know.

    n_kj and s_kj are the count and the sum of the vectors of input group j that are assigned to k.
    """
    groups, _, group_size = vectors.shape
    if fits_kernels(vectors, size):
        from oaem.quantization.kernels.cuda.clusters import sums_by_code_triton

        ones = torch.ones(groups, device=vectors.device)
        pull = sums_by_code_triton(torch.bmm(vectors, blocks).flatten(1), ones, codes[..., None], size)[0].double()
        labels = codes + size * torch.arange(groups, dtype=codes.dtype, device=codes.device)[:, None]
        counts = torch.bincount(labels.flatten(), minlength=groups * size).view(groups, size).double()
        return (counts.T @ blocks.double().flatten(1)).unflatten(1, (group_size, group_size)), pull
    labels = codes + size * torch.arange(groups, dtype=codes.dtype, device=codes.device)[:, None]
    clusters = ClusterSums(labels.flatten(), groups * size)
    sums = clusters(vectors.flatten(0, 1)).double().unflatten(0, (groups, size))
    counts = clusters.counts.double().unflatten(0, (groups, size))
    precise = blocks.double()
    curvature = (counts.T @ precise.flatten(1)).unflatten(1, (group_size, group_size))
    return curvature, torch.bmm(sums, precise).sum(0)


def adam_m_step(curvature: Tensor, pull: Tensor, centroids: Tensor, vectors: int, settings: OaemSettings) -> Tensor:
    """Centroids after a fresh Adam with cosine annealing on the mean of (v - c)^T H_j (v - c) over all `vectors`.

    The gradient is (2 / N) (A_k c_k - b_k), so a step costs K g^2 flops and never looks at the data.
    """
    rates = [_rate(step, settings) for step in range(settings.steps)]
    if centroids.is_cuda:
        from oaem.quantization.kernels.cuda.m_step import adam_m_step_triton as take_steps
    else:
        from oaem.quantization.kernels.cpu.m_step import adam_m_step_numba as take_steps
    return take_steps(curvature, pull, centroids, 2 / vectors, rates, (BETA1, BETA2), EPSILON)


def _rate(step: int, settings: OaemSettings) -> float:
    """The cosine-annealed learning rate of a step."""
    cosine = (1 + math.cos(math.pi * step / settings.steps)) / 2
    return settings.final_lr + (settings.lr - settings.final_lr) * cosine


def _minimiser(curvature: Tensor, pull: Tensor, centroids: Tensor) -> Tensor:
    """The exact M-step: c_k + A_k^+ (b_k - A_k c_k), which leaves empty clusters and blind directions alone."""
    values = centroids.double()
    missing = pull - torch.einsum("kij,kj->ki", curvature, values)
    solved = torch.einsum("kij,kj->ki", torch.linalg.pinv(curvature, hermitian=True), missing)
    return (values + solved).to(centroids.dtype)


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
