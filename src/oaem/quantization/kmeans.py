"""Lloyd k-means, one codebook of the greedy initialisation (section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from oaem.config.settings import KMeansSettings
from oaem.quantization.clusters import best_entries, best_entry_sums, cluster_sums

# Centroids that move by less than this have converged.
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-6, 1e-8


@torch.no_grad()
def kmeans(
    vectors: Tensor, size: int, settings: KMeansSettings, generator: torch.Generator, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Centroids [size, g] of `vectors` [N, g] and the nearest one of each vector, int32 [N].

    It starts from `size` random vectors, drawn from the CPU `generator`; fewer vectors than `size` are repeated. A
    cluster without vectors keeps its centroid.

    It lowers the sum of ||v - c||^2, or with `weights` [N] that of w ||v - c||^2: a centroid is then the weighted mean
    of its vectors; which one is nearest does not change, for a vector's weight is the same whichever it takes. With
    w = s_o^2 for each group of row o this is the squared error of the weights, ||W - W^||^2 (`squared_scale_weights`).
    """
    fitted, fitted_weights = vectors, weights
    if settings.max_vectors is not None and settings.max_vectors < len(vectors):
        sample = torch.randperm(len(vectors), generator=generator)[: settings.max_vectors]
        fitted = vectors[sample.to(vectors.device)]
        fitted_weights = None if weights is None else weights[sample.to(vectors.device)]
    start = _distinct(len(fitted), size, generator)
    centroids = fitted[start.repeat(-(-size // len(start)))[:size].to(vectors.device)]
    for iteration in range(1, settings.iterations + 1):
        sums, counts = _sums_by_nearest(fitted, centroids, fitted_weights)
        filled = counts[:, None] > 0
        moved = torch.where(filled, sums / counts[:, None].where(filled, 1), centroids)
        check = iteration % settings.check_every == 0
        converged = check and torch.allclose(moved, centroids, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE)
        centroids = moved
        if converged:
            break
    return centroids, nearest(vectors, centroids)


def _sums_by_nearest(vectors: Tensor, centroids: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums [K, g] and counts [K] of `vectors` [N, g] by their nearest centroid; with weights of w v and of w."""
    if weights is None:
        return best_entry_sums(vectors, -2 * centroids.T, centroids.square().sum(1))
    clusters = cluster_sums(nearest(vectors, centroids), len(centroids))
    return clusters(vectors * weights[:, None]), clusters(weights[:, None])[:, 0]


def _distinct(count: int, size: int, generator: torch.Generator) -> Tensor:
    """`size` different random numbers below `count`, or all of them where there are fewer -> int64."""
    if count < 16 * size:
        return torch.randperm(count, generator=generator)[:size]
    # A permutation of millions would take longer than a k-means iteration on a GPU.
    drawn: dict[int, None] = {}
    while len(drawn) < size:
        drawn |= dict.fromkeys(torch.randint(count, (size,), generator=generator).tolist())
    return torch.tensor(list(drawn)[:size])


def nearest(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Index of the centroid [K, g] nearest to each of `vectors` [N, g] -> int32 [N]; the lower one among equals."""
    squares = centroids.square().sum(1)
    return best_entries(vectors[None], -2 * centroids.T[None], squares[None])[0]
