"""The two data passes of every clustering step: assign vectors to entries, sum vectors by entry.

Every path gives the same bits on every run.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from oaem.numerics.fast_paths import fast_path

SCORES_AT_ONCE = 2**26  # Scores held at once: 256 MiB of float32.


def fits_kernels(values: Tensor, codebook_size: int) -> bool:
    """Whether the Triton kernels of clustering can serve: float32, and 16 to 256 entries, all held in registers."""
    return values.dtype == torch.float32 and 16 <= codebook_size <= 256


@fast_path(
    "cuda",
    "oaem.quantization.kernels.cuda.clusters:best_entries_triton",
    when=lambda vectors, maps, offsets: fits_kernels(vectors, maps.shape[2]),
)
@fast_path("cpu", "oaem.quantization.kernels.cpu.clusters:best_entries_numba")
@torch.no_grad()
def best_entries(vectors: Tensor, maps: Tensor, offsets: Tensor) -> Tensor:
    """argmin_k of offsets[j, k] + vectors[j, i] . maps[j, :, k], the lowest k among equals.

    vectors: float32 [J, n, g]. maps: [J, g, K]. offsets: [J, K]. Returns int32 [J, n].
    """
    codes = torch.empty(vectors.shape[:2], dtype=torch.int32, device=vectors.device)
    for groups, rows in _tiles(vectors.shape[0], vectors.shape[1], maps.shape[2]):
        scores = torch.baddbmm(offsets[groups, None], vectors[groups, rows], maps[groups])
        codes[groups, rows] = scores.argmin(2).to(torch.int32)
    return codes


@fast_path(
    "cuda",
    "oaem.quantization.kernels.cuda.clusters:best_entry_sums_triton",
    when=lambda vectors, maps, offsets: fits_kernels(vectors, maps.shape[1]),
)
def best_entry_sums(vectors: Tensor, maps: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [K, g] and counts [K] of `vectors` [N, g] by `best_entries` under maps [g, K] and offsets [K]."""
    clusters = cluster_sums(best_entries(vectors[None], maps[None], offsets[None])[0], maps.shape[1])
    return clusters(vectors), clusters.counts


class ClusterSums:
    """Sums of vectors by their label, for labels that serve several times; made by `cluster_sums`.

    labels: integer [N], each below `clusters`. `counts` [clusters] says how often each occurs.
    """

    def __init__(self, labels: Tensor, clusters: int):
        self.labels = labels.to(torch.int32)
        self.counts = torch.bincount(self.labels, minlength=clusters)

    def __call__(self, vectors: Tensor) -> Tensor:
        """The sums [clusters, g] in float32 (float64 for float64 vectors) of `vectors` [N, g]."""
        dtype = vectors.dtype if vectors.dtype == torch.float64 else torch.float32
        return self._sums(vectors.detach().to(dtype)).to(dtype)

    def _sums(self, vectors: Tensor) -> Tensor:
        sums = torch.zeros(len(self.counts), vectors.shape[1], dtype=torch.float64, device=vectors.device)
        return sums.index_put_((self.labels.long(),), vectors.double(), accumulate=True)


@fast_path("cuda", "oaem.quantization.kernels.cuda.cluster_sums:SortedSums")
@fast_path("cpu", "oaem.quantization.kernels.cpu.clusters:CompiledSums")
def cluster_sums(labels: Tensor, clusters: int) -> ClusterSums:
    """A callable that sums vectors by `labels`: see `ClusterSums`."""
    return ClusterSums(labels, clusters)


def _tiles(groups: int, vectors: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cut `groups` x `vectors` so that `size` scores for each vector of a tile fit in memory."""
    high = max(1, SCORES_AT_ONCE // size)
    wide = max(1, high // vectors)
    for group in range(0, groups, wide):
        for row in range(0, vectors, high):
            yield slice(group, group + wide), slice(row, row + high)
