"""Sums of vectors by label on a CUDA device, with the same bits on every run: sorted first, as atomics would vary."""

from __future__ import annotations

import torch
from torch import Tensor

from oaem.quantization.clusters import ClusterSums

RUN = 256  # Vectors that one thread sums in a row.


class SortedSums(ClusterSums):
    """`clusters.ClusterSums` in the dtype of the vectors, by segments of a sorted order."""

    def __init__(self, labels: Tensor, clusters: int):
        super().__init__(labels, clusters)
        self.order = self.labels.argsort(stable=True)
        self.runs, self.run_lengths = split(self.counts)

    def _sums(self, vectors: Tensor) -> Tensor:
        return sums_of_runs(vectors[self.order], self.runs, self.run_lengths)


def split(counts: Tensor) -> tuple[Tensor, Tensor]:
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
