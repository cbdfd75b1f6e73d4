from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from oaem.config.settings import KMeansSettings
from oaem.quantization import kmeans as kmeans_module
from oaem.quantization.kernels.cuda.cluster_sums import SortedSums
from oaem.quantization.kmeans import _distinct, kmeans, nearest
from oaem.runtime.seeds import generator


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("count", "size", "g"), [(1, 1, 1), (500, 7, 3), (9000, 16, 4), (300, 256, 8)])
def test_nearest_equals_brute_force(count: int, size: int, g: int) -> None:
    vectors, centroids = torch.randn(count, g), torch.randn(size, g)
    distances = ((vectors[:, None].double() - centroids.double()) ** 2).sum(-1)
    found = nearest(vectors, centroids).long()
    best = distances.min(dim=1).values
    torch.testing.assert_close(distances.gather(1, found[:, None])[:, 0], best, rtol=1e-5, atol=1e-6)
    assert (found == distances.argmin(1)).float().mean() > 0.99


def test_equal_centroids_go_to_the_lower_index() -> None:
    centroids = torch.randn(4, 5).repeat(8, 1)
    assert nearest(torch.randn(1000, 5), centroids).max() < 4


def test_equals_scikit_learn_from_the_same_start() -> None:
    vectors = torch.randn(800, 3, generator=stream(1))
    settings = KMeansSettings(iterations=300, check_every=1)
    centroids, codes = kmeans(vectors, 6, settings, stream())
    start = vectors[_distinct(800, 6, stream())].numpy()
    theirs = KMeans(6, init=start, n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(vectors.numpy())
    np.testing.assert_allclose(centroids.numpy(), theirs.cluster_centers_, rtol=1e-4, atol=1e-5)
    assert (codes.numpy() == theirs.labels_).mean() > 0.995


def test_iterations_and_checks_are_counted() -> None:
    """With the check at the end only, a converged start still runs its iterations and stays where it is."""
    vectors = torch.tensor([[0.0], [0.0], [4.0], [4.0]]).repeat(10, 1)
    once, _ = kmeans(vectors, 2, KMeansSettings(iterations=1), stream(2))
    many, codes = kmeans(vectors, 2, KMeansSettings(iterations=50, check_every=3), stream(2))
    torch.testing.assert_close(once, many)
    torch.testing.assert_close(many[codes.long()].sort(0).values, vectors.sort(0).values)


def test_empty_clusters_keep_their_centroid() -> None:
    vectors = torch.ones(10, 2)
    centroids, codes = kmeans(vectors, 4, KMeansSettings(iterations=5), stream())
    torch.testing.assert_close(centroids, torch.ones(4, 2))
    assert (codes == 0).all()


def test_fewer_vectors_than_centroids() -> None:
    vectors = torch.randn(3, 4)
    centroids, codes = kmeans(vectors, 8, KMeansSettings(), stream())
    assert centroids.shape == (8, 4)
    torch.testing.assert_close(centroids[codes.long()], vectors)


def test_a_sample_fits_but_every_vector_gets_a_code() -> None:
    vectors = torch.randn(2000, 4, generator=stream(4))
    centroids, codes = kmeans(vectors, 8, KMeansSettings(max_vectors=200), stream(1))
    assert codes.shape == (2000,)
    assert torch.equal(codes, nearest(vectors, centroids))
    full, _ = kmeans(vectors, 8, KMeansSettings(), stream(1))
    assert not torch.equal(full, centroids)


def test_same_bits_again() -> None:
    vectors = torch.randn(1000, 4)
    first, second = (kmeans(vectors, 16, KMeansSettings(iterations=12), stream(5)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_equals_lloyd_spelt_out() -> None:
    """So few vectors that many clusters hold a single one."""
    vectors = torch.randn(40, 3, generator=stream(6))
    centroids, codes = kmeans(vectors, 25, KMeansSettings(iterations=4), stream(8))
    precise = vectors.double()
    plain = precise[torch.randperm(40, generator=stream(8))[:25]]
    for _ in range(4):
        chosen = ((precise[:, None] - plain) ** 2).sum(-1).argmin(1)
        plain = torch.stack([precise[chosen == k].mean(0) if (chosen == k).any() else plain[k] for k in range(25)])
    torch.testing.assert_close(centroids.double(), plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(codes.long(), ((precise[:, None] - plain) ** 2).sum(-1).argmin(1))


@pytest.mark.parametrize("count", [3, 40, 64, 100_000])
def test_the_start_is_made_of_different_vectors(count: int) -> None:
    start = _distinct(count, 4, generator(0, "start", count))
    assert len(start) == len(set(start.tolist())) == min(count, 4)
    assert 0 <= int(start.min()) <= int(start.max()) < count
    assert torch.equal(start, _distinct(count, 4, generator(0, "start", count)))


@pytest.mark.parametrize("sums", [None, SortedSums], ids=["here", "as on a CUDA device"])
def test_weighted_centroids_equal_lloyd_spelt_out(monkeypatch: pytest.MonkeyPatch, sums: type | None) -> None:
    """Float32 against float64, 1e-5, as without weights; many clusters hold one vector, some of weights far below 1."""
    vectors, weights = torch.randn(40, 3, generator=stream(6)), torch.rand(40, generator=stream(7)) ** 8
    assert weights.min() < 1e-6
    if sums is not None:
        monkeypatch.setattr(kmeans_module, "cluster_sums", sums)
    centroids, codes = kmeans(vectors, 25, KMeansSettings(iterations=4), stream(8), weights)
    precise, shares = vectors.double(), weights.double()[:, None]
    plain = precise[torch.randperm(40, generator=stream(8))[:25]]
    for _ in range(4):
        chosen = ((precise[:, None] - plain) ** 2).sum(-1).argmin(1)
        for k in range(25):
            own = chosen == k
            if own.any():
                plain[k] = (shares[own] * precise[own]).sum(0) / shares[own].sum()
    torch.testing.assert_close(centroids.double(), plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(codes.long(), ((precise[:, None] - plain) ** 2).sum(-1).argmin(1))


def test_weighted_equals_scikit_learn_from_the_same_start() -> None:
    """Also on a sample of the vectors, whose weights are drawn with them."""
    vectors, weights = torch.randn(800, 3, generator=stream(1)), torch.rand(800, generator=stream(2)) + 0.01
    settings = KMeansSettings(iterations=300, check_every=1, max_vectors=500)
    centroids, _ = kmeans(vectors, 6, settings, stream(), weights)
    draws = stream()
    sample = torch.randperm(800, generator=draws)[:500]
    start = vectors[sample][_distinct(500, 6, draws)].numpy()
    theirs = KMeans(6, init=start, n_init=1, max_iter=300, tol=0, algorithm="lloyd")
    theirs.fit(vectors[sample].numpy(), sample_weight=weights[sample].numpy())
    np.testing.assert_allclose(centroids.numpy(), theirs.cluster_centers_, rtol=1e-4, atol=1e-5)


def test_vectors_without_weight_move_no_centroid() -> None:
    vectors = torch.tensor([[0.0], [1.0], [5.0]])
    centroids, _ = kmeans(vectors, 3, KMeansSettings(iterations=3), stream(), torch.zeros(3))
    torch.testing.assert_close(centroids.sort(0).values, vectors)
