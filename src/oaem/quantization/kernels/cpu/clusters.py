"""Assignment of vectors to entries and sums by label, compiled for the CPU: the fast twins of `clusters.py`."""

from __future__ import annotations

from functools import partial

import numba
import numpy as np
import torch
from torch import Tensor

from oaem.numerics.chunks import for_each_chunk
from oaem.quantization.clusters import ClusterSums

VECTOR_CHUNK = 8192
LANES = 512  # Vectors that go through the compiled code side by side: as many as the first-level cache holds.

_compiled = partial(numba.njit, cache=True, nogil=True, fastmath={"nnan", "nsz", "contract", "reassoc"})


@torch.no_grad()
def best_entries_numba(vectors: Tensor, maps: Tensor, offsets: Tensor) -> Tensor:
    """See `clusters.best_entries`; computes in float32, whatever the dtype. Uses torch's threads."""
    codes = torch.empty(vectors.shape[:2], dtype=torch.int32)
    arrays = [tensor.float().contiguous().numpy() for tensor in (vectors, maps, offsets)]
    starts = range(0, vectors.shape[1], VECTOR_CHUNK)
    for_each_chunk(lambda start: _assign(start, start + VECTOR_CHUNK, *arrays, codes.numpy()), starts)
    return codes


class CompiledSums(ClusterSums):
    """`clusters.ClusterSums` in one pass over the vectors, summed in float64 in their order."""

    def _sums(self, vectors: Tensor) -> Tensor:
        sums = np.zeros((len(self.counts), vectors.shape[1]))
        _add_up(self.labels.numpy(), vectors.contiguous().numpy(), sums)
        return torch.from_numpy(sums)


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
