"""The RMS norm in Triton, through Triton's interpreter, against torch's own and its autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

pytest.importorskip("tests.unit.interpreter")

from oaem.quantization.kernels.cuda import rms_norm as kernels
from oaem.quantization.kernels.cuda.rms_norm import rms_norm
from tests.unit.interpreter import randn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 11, 48), (2, 3, 4, 16)], ids=str)  # of a block, and of heads
def test_norm_and_its_gradients(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(kernels, "PROGRAMS", 4)  # several rows a program
    inputs = (3 * randn(*shape, seed=0)).to(dtype).requires_grad_()
    weight = (1 + randn(shape[-1], seed=1) / 3).requires_grad_()
    incoming = randn(*shape, seed=2).bfloat16()
    found = rms_norm(inputs, weight, 0.1)
    exact = [part.detach().double().requires_grad_() for part in (inputs, weight)]
    expected = functional.rms_norm(exact[0], (shape[-1],), exact[1], 0.1)
    for_inputs, for_weight = torch.autograd.grad(found, (inputs, weight), incoming)
    exact_for_inputs, exact_for_weight = torch.autograd.grad(expected, exact, incoming.double())
    assert (found.dtype, for_inputs.dtype, for_weight.dtype) == (torch.bfloat16, dtype, torch.float32)
    rounded = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(for_inputs.double(), exact_for_inputs, rtol=rounded, atol=1e-5)
    torch.testing.assert_close(for_weight.double(), exact_for_weight, rtol=1e-5, atol=1e-5)


def test_inputs_without_a_gradient_change_nothing_for_the_weight() -> None:
    inputs, weight, incoming = randn(1, 7, 48), randn(48, seed=1).requires_grad_(), randn(1, 7, 48, seed=2).bfloat16()
    kept = inputs.clone()
    (alone,) = torch.autograd.grad(rms_norm(inputs, weight, 0.1), (weight,), incoming)
    _, together = torch.autograd.grad(rms_norm(kept.requires_grad_(), weight, 0.1), (kept, weight), incoming)
    assert torch.equal(alone, together) and torch.equal(inputs, kept)
