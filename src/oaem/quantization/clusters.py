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
LANES = 512  # Vectors that go through the compiled code side by side: as many as the first-level cache holds.
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
    starts = range(0, vectors.shape[1], VECTOR_CHUNK)
    for_each_chunk(lambda start: _assign(start, start + VECTOR_CHUNK, *arrays, codes.numpy()), starts)
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
        _add_up(self.labels.numpy(), vectors.contiguous().numpy(), sums)
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
def _assign(start, stop, vectors, maps, offsets, codes):  # type: ignore[no-untyped-def]
    """Fill codes [J, start:stop] as `best_entries` says; vector instructions run along LANES vectors at a time."""
    groups, count, group_size = vectors.shape
    lanes = np.empty((group_size, LANES), np.float32)
    scores, lowest = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    best = np.empty(LANES, np.int32)
    for j in range(groups):
        for first in range(start, min(stop, count), LANES):
            used = min(LANES, stop - first, count - first)
            for n in range(used):
                lowest[n], best[n] = np.inf, 0
                for i in range(group_size):
                    lanes[i, n] = vectors[j, first + n, i]
            for k in range(maps.shape[2]):
                _score(scores, used, offsets[j, k], lanes, maps, j, k)
                for n in range(used):
                    better = scores[n] < lowest[n]
                    best[n] = k if better else best[n]
                    lowest[n] = scores[n] if better else lowest[n]
            for n in range(used):
                codes[j, first + n] = best[n]


@_compiled(inline="always")
def _score(scores, used, offset, lanes, maps, j, k):  # type: ignore[no-untyped-def]
    """scores[n] = offset + lanes[:, n] . maps[j, :, k]; several terms at once spare memory traffic."""
    terms = len(lanes)
    i = terms % 4
    if i == 0:
        for n in range(used):
            scores[n] = offset
    elif i == 1:
        a = maps[j, 0, k]
        for n in range(used):
            scores[n] = offset + a * lanes[0, n]
    elif i == 2:
        a, b = maps[j, 0, k], maps[j, 1, k]
        for n in range(used):
            scores[n] = offset + a * lanes[0, n] + b * lanes[1, n]
    else:
        a, b, c = maps[j, 0, k], maps[j, 1, k], maps[j, 2, k]
        for n in range(used):
            scores[n] = offset + a * lanes[0, n] + b * lanes[1, n] + c * lanes[2, n]
    while i < terms:
        a, b, c, d = maps[j, i, k], maps[j, i + 1, k], maps[j, i + 2, k], maps[j, i + 3, k]
        for n in range(used):
            scores[n] += (a * lanes[i, n] + b * lanes[i + 1, n]) + (c * lanes[i + 2, n] + d * lanes[i + 3, n])
        i += 4


@numba.njit(cache=True, nogil=True)
def _add_up(labels, vectors, sums):  # type: ignore[no-untyped-def]
    for n in range(len(labels)):
        for i in range(vectors.shape[1]):
            sums[labels[n], i] += vectors[n, i]
