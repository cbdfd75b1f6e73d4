from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oaem.config.settings import OaemSettings
from oaem.quantization.initialise import squared_scale_weights
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


@pytest.mark.parametrize("row_weights", [None, torch.rand(40, dtype=torch.float64)], ids=["uniform", "weighted"])
def test_exact_m_step_has_no_gradient_and_leaves_empty_clusters(row_weights: Tensor | None) -> None:
    vectors, blocks, centroids, codes = clustered(size=6)
    codes[codes == 5] = 0
    settings = OaemSettings(rounds=1)
    updated, _ = oaem_refine(vectors, blocks, centroids, codes, settings, True, row_weights)
    moved = updated.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(clustering_loss(vectors, blocks, moved, codes, row_weights), moved)
    assert gradient.abs().max() < 1e-12
    assert torch.equal(updated[5], centroids[5])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_every_round_lowers_the_loss(exact: bool, weighted: bool) -> None:
    vectors, blocks, centroids, codes = clustered(out=200, size=8, dtype=torch.float32)
    row_weights = squared_scale_weights(torch.rand(200) + 0.1) if weighted else None
    losses = [float(clustering_loss(vectors, blocks, centroids, codes, row_weights))]
    for _ in range(4):
        centroids, codes = oaem_refine(vectors, blocks, centroids, codes, OaemSettings(rounds=1), exact, row_weights)
        losses.append(float(clustering_loss(vectors, blocks, centroids, codes, row_weights)))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
