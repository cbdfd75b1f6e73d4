"""The M-step of OA-EM: the centroids that fit their vectors best under the layer's own output metric (Eq. 3).

With assignments fixed the loss is a quadratic form of each centroid, so all the data it needs are A_k and b_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from oaem.config.settings import OaemSettings
from oaem.numerics.fast_paths import fast_path
from oaem.quantization.clusters import cluster_sums, fits_kernels

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@fast_path(
    "cuda",
    "oaem.quantization.kernels.cuda.m_step:statistics_triton",
    when=lambda vectors, blocks, codes, size, row_weights=None: row_weights is None and fits_kernels(vectors, size),
)
def statistics(
    vectors: Tensor, blocks: Tensor, codes: Tensor, size: int, row_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A_k = sum_j n_kj H_j [K, g, g] and b_k = sum_j H_j s_kj [K, g], in float64: all that the M-step needs to know.

    n_kj and s_kj are the count and the sum of the vectors of input group j that are assigned to k. vectors:
    [in/g, out, g], blocks: damped H_j [in/g, g, g], codes: integer [in/g, out], each below `size`. With `row_weights`
    w [out] they are sums of w_o and of w_o v instead.
    """
    groups, _, group_size = vectors.shape
    labels = codes + size * torch.arange(groups, dtype=codes.dtype, device=codes.device)[:, None]
    clusters = cluster_sums(labels.flatten(), groups * size)
    counts = clusters.counts
    if row_weights is not None:
        vectors = vectors * row_weights[:, None]
        counts = clusters(row_weights.double().repeat(groups)[:, None])
    sums = clusters(vectors.flatten(0, 1)).double().unflatten(0, (groups, size))
    counts = counts.double().view(groups, size)
    precise = blocks.double()
    curvature = (counts.T @ precise.flatten(1)).unflatten(1, (group_size, group_size))
    return curvature, torch.bmm(sums, precise).sum(0)


def adam_m_step(curvature: Tensor, pull: Tensor, centroids: Tensor, vectors: int, settings: OaemSettings) -> Tensor:
    """Centroids after a fresh Adam with cosine annealing on the mean of (v - c)^T H_j (v - c) over all `vectors`.

    The gradient is (2 / N) (A_k c_k - b_k), so a step costs K g^2 flops and never looks at the data.
    """
    rates = [_rate(step, settings) for step in range(settings.steps)]
    return adam_on_quadratic(curvature, pull, centroids, 2 / vectors, rates, (BETA1, BETA2), EPSILON)


@fast_path("cuda", "oaem.quantization.kernels.cuda.m_step:adam_m_step_triton")
@fast_path("cpu", "oaem.quantization.kernels.cpu.m_step:adam_m_step_numba")
def adam_on_quadratic(
    curvature: Tensor,
    pull: Tensor,
    centroids: Tensor,
    scale: float,
    rates: Sequence[float],
    betas: tuple[float, float],
    epsilon: float,
) -> Tensor:
    """Centroids [K, g] after one Adam step for each of `rates`, from the gradient scale * (A_k c_k - b_k), in float64.

    curvature: A_k, float64 [K, g, g], symmetric. pull: b_k, float64 [K, g].
    """
    values = centroids.double()
    first, second = torch.zeros_like(values), torch.zeros_like(values)
    for step, rate in enumerate(rates, start=1):
        gradient = scale * (torch.einsum("kij,kj->ki", curvature, values) - pull)
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        length = rate / (1 - betas[0] ** step)
        values = values - length * first / ((second / (1 - betas[1] ** step)).sqrt() + epsilon)
    return values.to(centroids.dtype)


def exact_m_step(curvature: Tensor, pull: Tensor, centroids: Tensor) -> Tensor:
    """The minimiser: c_k + A_k^+ (b_k - A_k c_k), which leaves empty clusters and blind directions alone."""
    values = centroids.double()
    missing = pull - torch.einsum("kij,kj->ki", curvature, values)
    solved = torch.einsum("kij,kj->ki", torch.linalg.pinv(curvature, hermitian=True), missing)
    return (values + solved).to(centroids.dtype)


def _rate(step: int, settings: OaemSettings) -> float:
    """The cosine-annealed learning rate of a step."""
    cosine = (1 + math.cos(math.pi * step / settings.steps)) / 2
    return settings.final_lr + (settings.lr - settings.final_lr) * cosine
