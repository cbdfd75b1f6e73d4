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
BATCH = 512  # Vectors that go through the compiled code side by side: as many as the first-level cache holds.

_compiled = partial(numba.njit, cache=True, nogil=True, fastmath={"nnan", "nsz", "contract", "reassoc"})


@torch.no_grad()
def best_entries_numba(vectors: Tensor, maps: Tensor, offsets: Tensor) -> Tensor:
    """See `clusters.best_entries`; computes in float32, whatever the dtype. Uses torch's threads."""
    codes = torch.empty(vectors.shape[:2], dtype=torch.int32)
    arrays = [tensor.float().contiguous().numpy() for tensor in (vectors, maps, offsets)]
    starts, lanes = range(0, vectors.shape[1], VECTOR_CHUNK), (0,) * vectors.shape[2]
    for_each_chunk(lambda start: _assign(start, start + VECTOR_CHUNK, lanes, *arrays, codes.numpy()), starts)
    return codes


class CompiledSums(ClusterSums):
    """`clusters.ClusterSums` in one pass over the vectors, summed in float64 in their order."""

    def _sums(self, vectors: Tensor) -> Tensor:
        sums = np.zeros((len(self.counts), vectors.shape[1]))
        _add_up((0,) * vectors.shape[1], self.labels.numpy(), vectors.contiguous().numpy(), sums)
        return torch.from_numpy(sums)


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
