"""Assignment and sums by label: the formula and its fast path against plain torch."""

from __future__ import annotations

import pytest
import torch

from oaem.quantization.clusters import ClusterSums, best_entries, best_entry_sums, cluster_sums
from oaem.quantization.kernels.cuda.cluster_sums import split, sums_of_runs


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_best_entries_by_group() -> None:
    vectors, maps, offsets = torch.randn(3, 50, 4), torch.randn(3, 4, 9), torch.randn(3, 9)
    scores = offsets[:, None] + vectors.double() @ maps.double()
    assert torch.equal(best_entries(vectors, maps, offsets).long(), scores.argmin(-1))


@pytest.mark.parametrize("clusters", [1, 10, 400])
def test_sums_by_cluster(clusters: int) -> None:
    labels, vectors = torch.randint(0, clusters, (3000,)), torch.randn(3000, 5)
    expected = torch.zeros(clusters, 5, dtype=torch.float64).index_add_(0, labels, vectors.double())
    sums = cluster_sums(labels, clusters)
    torch.testing.assert_close(sums(vectors).double(), expected, rtol=1e-5, atol=1e-5)
    # The way that accelerators go.
    sorted_runs = sums_of_runs(vectors[labels.argsort(stable=True)], *split(sums.counts))
    torch.testing.assert_close(sorted_runs.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_oracles_say_the_same() -> None:
    """Several tiles of scores; the codes are equal, for no two scores here are closer than float32 can tell."""
    vectors, maps, offsets = torch.randn(3, 50, 4), torch.randn(3, 4, 9), torch.randn(3, 9)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("oaem.quantization.clusters.SCORES_AT_ONCE", 7 * 9)
        codes = best_entries.oracle(vectors, maps, offsets)
    assert codes.dtype == torch.int32
    assert torch.equal(codes, best_entries(vectors, maps, offsets))
    plain = cluster_sums.oracle(codes[0], 9)
    assert type(plain) is ClusterSums
    for dtype in (torch.float32, torch.float64):
        found = cluster_sums(codes[0], 9)(vectors[0].to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found, plain(vectors[0].to(dtype)), rtol=1e-6, atol=1e-6)
    sums, counts = best_entry_sums.oracle(vectors[0], maps[0], offsets[0])
    torch.testing.assert_close(sums, best_entry_sums(vectors[0], maps[0], offsets[0])[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(counts, torch.bincount(codes[0], minlength=9))
