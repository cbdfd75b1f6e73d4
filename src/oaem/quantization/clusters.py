"""The two data passes of every clustering step, on either device: assign vectors to entries, sum vectors by entry.

Both give the same bits on every run. On CUDA that rules out atomic additions, so sums go through a sort.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numba
import numpy as np
import torch
from torch import Tensor

from oaem.numerics.chunks import for_each_chunk

SCORES_AT_ONCE = 2**26  # Scores held at once on an accelerator: 256 MiB of float32.
VECTOR_CHUNK = 8192
BATCH = 512  # Vectors that go through the compiled code side by side: as many as the first-level cache holds.
RUN = 256  # Vectors that one accelerator thread sums in a row.

_compiled = partial(numba.njit, cache=True, nogil=True, fastmath={"nnan", "nsz", "contract", "reassoc"})


@torch.no_grad()
def best_entries(vectors: Tensor, maps: Tensor, offsets: Tensor) -> Tensor:
    """argmin_k of offsets[j, k] + vectors[j, i] . maps[j, :, k], the lowest k among equals.

    vectors: float32 [J, n, g]. maps: [J, g, K]. offsets: [J, K]. Returns int32 [J, n].
    """
    if fits_kernels(vectors, maps.shape[2]):
        from oaem.quantization.kernels.cuda.clusters import best_entries_triton

        return best_entries_triton(vectors, maps, offsets)
    codes = torch.empty(vectors.shape[:2], dtype=torch.int32, device=vectors.device)
    if vectors.is_cuda:
        for groups, rows in _tiles(vectors.shape[0], vectors.shape[1], maps.shape[2]):
            scores = torch.baddbmm(offsets[groups, None], vectors[groups, rows], maps[groups])
            codes[groups, rows] = scores.argmin(2).to(torch.int32)
        return codes
    arrays = [tensor.float().contiguous().numpy() for tensor in (vectors, maps, offsets)]
    starts, lanes = range(0, vectors.shape[1], VECTOR_CHUNK), (0,) * vectors.shape[2]
    for_each_chunk(lambda start: _assign(start, start + VECTOR_CHUNK, lanes, *arrays, codes.numpy()), starts)
    return codes


def best_entry_sums(vectors: Tensor, maps: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [K, g] and counts [K] of `vectors` [N, g] by `best_entries` under maps [g, K] and offsets [K]."""
    if fits_kernels(vectors, maps.shape[1]):
        from oaem.quantization.kernels.cuda.clusters import best_entry_sums_triton

        return best_entry_sums_triton(vectors, maps, offsets)
    clusters = ClusterSums(best_entries(vectors[None], maps[None], offsets[None])[0], maps.shape[1])
    return clusters(vectors), clusters.counts


def fits_kernels(values: Tensor, codebook_size: int) -> bool:
    """Whether the Triton kernels can serve: float32 on a CUDA device, codebooks of 16 to 256 entries."""
    return values.is_cuda and values.dtype == torch.float32 and 16 <= codebook_size <= 256


def _tiles(groups: int, vectors: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cut `groups` x `vectors` so that `size` scores for each vector of a tile fit in memory."""
    high = max(1, SCORES_AT_ONCE // size)
    wide = max(1, high // vectors)
    for group in range(0, groups, wide):
        for row in range(0, vectors, high):
            yield slice(group, group + wide), slice(row, row + high)


class ClusterSums:
    """Sums of vectors by their label, for labels that serve several times.

    labels: integer [N], each below `clusters`. `counts` [clusters] says how often each occurs.
    """

    def __init__(self, labels: Tensor, clusters: int):
        self.labels = labels.to(torch.int32)
        self.counts = torch.bincount(self.labels, minlength=clusters)
        if labels.is_cuda:
            self.order = self.labels.argsort(stable=True)
            self.runs, self.run_lengths = _split(self.counts)

    def __call__(self, vectors: Tensor) -> Tensor:
        """The sums [clusters, g] in float32 (float64 for float64 vectors) of `vectors` [N, g]."""
        dtype = vectors.dtype if vectors.dtype == torch.float64 else torch.float32
        vectors = vectors.detach().to(dtype)
        if vectors.is_cuda:
            return sums_of_runs(vectors[self.order], self.runs, self.run_lengths)
        sums = np.zeros((len(self.counts), vectors.shape[1]))
        _add_up((0,) * vectors.shape[1], self.labels.numpy(), vectors.contiguous().numpy(), sums)
        return torch.from_numpy(sums).to(dtype)


def _split(counts: Tensor) -> tuple[Tensor, Tensor]:
    """How many runs of at most RUN vectors each cluster is cut into [clusters], and the length of every run."""
    runs = (counts + RUN - 1) // RUN
    lengths = torch.full((int(runs.sum()),), RUN, device=counts.device)
    used = runs > 0
    lengths[runs.cumsum(0)[used] - 1] = (counts - RUN * (runs - 1))[used]
    return runs, lengths


def sums_of_runs(vectors: Tensor, runs: Tensor, run_lengths: Tensor) -> Tensor:
    """Sums [clusters, g] of vectors [N, g] sorted by cluster: first within runs, then over the runs of a cluster."""
    partial_sums = torch.segment_reduce(vectors, "sum", lengths=run_lengths, axis=0, initial=0, unsafe=True)
    return torch.segment_reduce(partial_sums, "sum", lengths=runs, axis=0, initial=0, unsafe=True)


@_compiled()
def _assign(start, stop, lanes, vectors, maps, offsets, codes):  # type: ignore[no-untyped-def]
    """Fill codes [J, start:stop] as `best_entries` says; vector instructions run along BATCH vectors at a time.

    The length of `lanes`, g, is part of its type: the compiler unrolls the loops over it, so that a score lives in a
    register from its first term to its comparison.
    """
    groups, count, _ = vectors.shape
    batch = np.empty((len(lanes), BATCH), np.float32)
    lowest, best = np.empty(BATCH, np.float32), np.empty(BATCH, np.int32)
    entry = np.empty(len(lanes), np.float32)
    for j in range(groups):
        for first in range(start, min(stop, count), BATCH):
            used = min(BATCH, stop - first, count - first)
            for n in range(used):
                lowest[n], best[n] = np.inf, 0
                for i in range(len(lanes)):
                    batch[i, n] = vectors[j, first + n, i]
            for k in range(maps.shape[2]):
                offset = offsets[j, k]
                for i in range(len(lanes)):
                    entry[i] = maps[j, i, k]
                for n in range(used):
                    score = offset
                    for i in range(len(lanes)):
                        score += entry[i] * batch[i, n]
                    better = score < lowest[n]
                    best[n] = k if better else best[n]
                    lowest[n] = score if better else lowest[n]
            for n in range(used):
                codes[j, first + n] = best[n]


@numba.njit(cache=True, nogil=True)
def _add_up(lanes, labels, vectors, sums):  # type: ignore[no-untyped-def]
    for n in range(len(labels)):
        for i in range(len(lanes)):
            sums[labels[n], i] += vectors[n, i]
