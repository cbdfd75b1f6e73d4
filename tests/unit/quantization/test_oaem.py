from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor

from oaem.config.geometry import Geometry
from oaem.config.settings import LayerSettings, OaemSettings
from oaem.errors import UserError
from oaem.quantization import initialise as initialisation
from oaem.quantization.initialise import initialise, known_initialisations
from oaem.quantization.oaem import e_step, hessian_blocks, oaem_refine
from tests.unit.quantization.toy_layers import clustered, clustering_loss


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_blocks_are_the_diagonal_of_h_with_one_damping_for_the_layer() -> None:
    hessian = torch.randn(6, 6, dtype=torch.float64)
    hessian = hessian @ hessian.T
    blocks = hessian_blocks(hessian, 3, 0.01)
    damping = 0.01 * hessian.diagonal().mean()
    for j in range(2):
        torch.testing.assert_close(blocks[j], hessian[3 * j : 3 * j + 3, 3 * j : 3 * j + 3] + damping * torch.eye(3))


def test_blocks_of_a_dead_layer_measure_plain_distance() -> None:
    assert torch.equal(hessian_blocks(torch.zeros(4, 4), 2, 0.01), torch.eye(2).expand(2, 2, 2))


def test_e_step_equals_exhaustive_search() -> None:
    vectors, blocks, centroids, _ = clustered(out=300, size=16, dtype=torch.float32)
    difference = vectors[:, :, None].double() - centroids.double()
    costs = torch.einsum("jnkg,jgh,jnkh->jnk", difference, blocks.double(), difference)
    found = e_step(vectors, blocks, centroids)
    assert (found == costs.argmin(-1)).float().mean() > 0.998
    chosen = costs.gather(2, found.long()[..., None])[..., 0]
    torch.testing.assert_close(chosen, costs.min(-1).values, rtol=1e-4, atol=1e-4)


def test_exact_m_step_has_no_gradient_and_leaves_empty_clusters() -> None:
    vectors, blocks, centroids, codes = clustered(size=6)
    codes[codes == 5] = 0
    settings = OaemSettings(rounds=1)
    updated, _ = oaem_refine(vectors, blocks, centroids, codes, settings, exact=True)
    moved = updated.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(clustering_loss(vectors, blocks, moved, codes), moved)
    assert gradient.abs().max() < 1e-12
    assert torch.equal(updated[5], centroids[5])


@pytest.mark.parametrize("exact", [False, True])
def test_every_round_lowers_the_loss(exact: bool) -> None:
    vectors, blocks, centroids, codes = clustered(out=200, size=8, dtype=torch.float32)
    losses = [float(clustering_loss(vectors, blocks, centroids, codes))]
    for _ in range(4):
        centroids, codes = oaem_refine(vectors, blocks, centroids, codes, OaemSettings(rounds=1), exact)
        losses.append(float(clustering_loss(vectors, blocks, centroids, codes)))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def layer() -> tuple[Tensor, Tensor]:
    vectors, blocks, _, _ = clustered(out=60, dtype=torch.float32)
    weight = vectors.transpose(0, 1).flatten(1)
    return weight, torch.block_diag(*blocks)


def block_loss(weight: Tensor, hessian: Tensor, name: str) -> float:
    """The damped block loss of what `name` gives with two codebooks, in row-normalised space."""
    result = initialise(name, weight, hessian, Geometry(2, 3, 4), LayerSettings(), seed=3)
    difference = (result.dequantize() - weight) / result.row_scales[:, None]
    return float(((difference @ hessian) * difference).sum())


def test_output_aware_beats_greedy_in_its_own_metric() -> None:
    weight, hessian = layer()
    greedy, adam, exact = (block_loss(weight, hessian, name) for name in ("greedy", "oaem", "oaem_exact"))
    assert exact < adam < greedy


def test_second_codebook_is_fitted_to_the_residual_of_the_first() -> None:
    weight, hessian = layer()
    one = initialise("greedy", weight, hessian, Geometry(1, 3, 4), LayerSettings(), seed=1)
    two = initialise("greedy", weight, hessian, Geometry(2, 3, 4), LayerSettings(), seed=1)
    assert torch.equal(one.codebooks[0], two.codebooks[0]) and torch.equal(one.codes[..., 0], two.codes[..., 0])
    assert (two.dequantize() - weight).norm() < (one.dequantize() - weight).norm()
    assert two.codes.shape == (60, 6, 2) and two.codebooks.shape == (2, 8, 4)


def test_unknown_initialisation_names_the_known_ones() -> None:
    weight, hessian = layer()
    with pytest.raises(UserError, match="greedy, oaem, oaem_exact"):
        initialise("random", weight, hessian, Geometry(1, 3, 4), LayerSettings(), seed=1)


def freeze(vectors, blocks, centroids, codes, settings):
    """A plug-in's refinement, found by the test below."""
    return torch.zeros_like(centroids), codes


def test_plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("zeros", f"{__name__}:freeze", initialisation.ENTRY_POINTS),
        EntryPoint("broken", "no_such_module:function", initialisation.ENTRY_POINTS),
    ]

    def installed(group: str, name: str | None = None) -> list[EntryPoint]:
        return [point for point in points if point.group == group and name in (None, point.name)]

    monkeypatch.setattr(initialisation, "entry_points", installed)
    weight, hessian = layer()
    assert known_initialisations() == ["broken", "greedy", "oaem", "oaem_exact", "zeros"]
    assert not initialise("zeros", weight, hessian, Geometry(1, 3, 4), LayerSettings(), seed=1).dequantize().any()
    with pytest.raises(UserError, match="cannot be loaded"):
        initialise("broken", weight, hessian, Geometry(1, 3, 4), LayerSettings(), seed=1)
