"""The Hessian's sums on a CUDA device, on tensor cores where the inputs have 16 bits, against one float64 product."""

from __future__ import annotations

import pytest
import torch

from oaem.quantization.hessian import HessianAccumulator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [96, 1536])
def test_sums_are_those_of_float64(width: int, dtype: torch.dtype) -> None:
    """Relative to the diagonal. 1024 tokens are 64 sums of 16 in a tensor core, each of which may lose 2^-23: 8e-6.

    A float32 sum of 2500 roundings loses some 1e-6 by chance.
    """
    draws = torch.Generator("cuda").manual_seed(0)
    inputs = torch.randn(3, 2500, width, generator=draws, device="cuda") * torch.logspace(-2, 2, width).cuda() + 0.5
    inputs = inputs.to(dtype)
    accumulator = HessianAccumulator(width, "cuda")
    for sequence in inputs:
        accumulator.update(sequence[None])
    flat = inputs.flatten(0, 1).double()
    exact = flat.T @ flat / 7500
    size = exact.diagonal().sqrt()
    found = accumulator.finish()
    assert found.dtype == torch.float32
    assert float(((found - exact).abs() / torch.outer(size, size)).max()) < 1e-5
