"""The M-step in Triton, through Triton's interpreter, against torch's Adam."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tests.unit.interpreter")

from oaem.quantization.kernels.cuda.m_step import adam_m_step_triton, statistics_triton
from oaem.quantization.m_step import statistics
from tests.unit.interpreter import randn
from tests.unit.quantization.toy_layers import clustered


def test_m_step_takes_the_steps_of_adam() -> None:
    roots = randn(3, 6, 6).double()
    curvature, pull, centroids = roots @ roots.transpose(1, 2), randn(3, 6, seed=1).double(), randn(3, 6, seed=2)
    rates, scale = [0.1, 0.05, 0.01], 0.25
    values = centroids.double().requires_grad_()
    optimizer = torch.optim.Adam([values], betas=(0.9, 0.999), eps=1e-8)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        values.grad = scale * (torch.einsum("kij,kj->ki", curvature, values.detach()) - pull)
        optimizer.step()
    found = adam_m_step_triton(curvature, pull, centroids, scale, rates, (0.9, 0.999), 1e-8)
    torch.testing.assert_close(found, values.detach().float())


def test_what_it_knows_of_the_data() -> None:
    vectors, blocks, _, codes = clustered(size=16, dtype=torch.float32)
    found, expected = statistics_triton(vectors, blocks, codes, 16), statistics.oracle(vectors, blocks, codes, 16)
    for ours, right in zip(found, expected, strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)
