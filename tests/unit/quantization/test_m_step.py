"""The M-step against autograd and torch's Adam on the literal loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oaem.config.settings import OaemSettings
from oaem.quantization import m_step
from oaem.quantization.kernels.cuda.cluster_sums import SortedSums
from oaem.quantization.m_step import adam_m_step, adam_on_quadratic, statistics
from tests.unit.quantization.toy_layers import clustered, clustering_loss

# Of the 40 rows of `clustered`: whole numbers, so that a row may as well be there as many times.
TIMES = torch.arange(40) % 5


@pytest.mark.parametrize("row_weights", [None, TIMES.double() / TIMES.double().mean()], ids=["uniform", "weighted"])
def test_gradient_equals_autograd_of_the_literal_loss(row_weights: Tensor | None) -> None:
    vectors, blocks, centroids, codes = clustered()
    centroids.requires_grad_(True)
    (expected,) = torch.autograd.grad(clustering_loss(vectors, blocks, centroids, codes, row_weights), centroids)
    curvature, pull = statistics(vectors, blocks, codes, len(centroids), row_weights)
    gradient = 2 / codes.numel() * (torch.einsum("kij,kj->ki", curvature, centroids.detach()) - pull)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_m_step_equals_torch_adam_on_the_literal_loss() -> None:
    vectors, blocks, centroids, codes = clustered()
    settings = OaemSettings(steps=30, lr=1e-2, final_lr=1e-3)
    ours = adam_m_step(*statistics(vectors, blocks, codes, len(centroids)), centroids, codes.numel(), settings)
    parameter = centroids.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([parameter], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        clustering_loss(vectors, blocks, parameter, codes).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(ours, parameter.detach(), rtol=1e-9, atol=1e-11)


def test_the_oracle_takes_the_same_steps() -> None:
    """Both in float64: 1e-12."""
    vectors, blocks, centroids, codes = clustered()
    arguments = (*statistics(vectors, blocks, codes, 5), centroids, 0.01, [0.1, 0.05, 0.01], (0.9, 0.999), 1e-8)
    torch.testing.assert_close(
        adam_on_quadratic(*arguments), adam_on_quadratic.oracle(*arguments), rtol=1e-12, atol=1e-12
    )
    pairs = zip(statistics(vectors, blocks, codes, 5), statistics.oracle(vectors, blocks, codes, 5), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_row_of_weight_n_counts_as_n_rows() -> None:
    """In float64, 1e-12, by the fast path, by the oracle and by the sums of a CUDA device; weight 0 as no row."""
    vectors, blocks, _, codes = clustered()
    expected = statistics.oracle(vectors.repeat_interleave(TIMES, 1), blocks, codes.repeat_interleave(TIMES, 1), 5)
    with pytest.MonkeyPatch.context() as patched:
        found = [each(vectors, blocks, codes, 5, TIMES.double()) for each in (statistics, statistics.oracle)]
        patched.setattr(m_step, "cluster_sums", SortedSums)
        found.append(statistics(vectors, blocks, codes, 5, TIMES.double()))
    for pair in found:
        for ours, right in zip(pair, expected, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-12, atol=1e-12)


def test_no_kernel_that_counts_every_row_alike_takes_weights() -> None:
    vectors, blocks, _, codes = clustered(dtype=torch.float32)
    fits = statistics.paths["cuda"].when
    assert fits is not None
    assert fits(vectors, blocks, codes, 16) and not fits(vectors, blocks, codes, 16, torch.ones(40))
