"""LAMB in Triton, through Triton's interpreter, against its definition."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tests.unit.interpreter")

from oaem.pv.kernels.cuda import lamb as lamb_triton
from oaem.pv.lamb import Lamb, lamb_step_reference
from tests.unit.interpreter import randn


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_lamb(monkeypatch: pytest.MonkeyPatch, beta1: float) -> None:
    """float32 against the definition in float64, several tiles: 1e-5."""
    monkeypatch.setattr(lamb_triton, "TILE", 32)
    lamb = Lamb(lr=0.02, beta1=beta1, beta2=0.95, eps=1e-6)
    parameter = randn(7, 13)
    expected, first, second = parameter.double(), torch.zeros(7, 13).double(), torch.zeros(7, 13).double()
    moments = lamb.moments(parameter)
    for step in range(1, 8):
        gradient = randn(7, 13, seed=step) * 10.0 ** (step % 5 - 3)
        lamb_triton.lamb_step_triton(parameter, gradient, moments, step, lamb)
        expected, first, second = lamb_step_reference(expected, gradient.double(), first, second, step, lamb)
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moments["second"].double(), second, rtol=1e-5, atol=0)


def test_lamb_without_a_parameter_or_without_a_gradient() -> None:
    lamb = Lamb(lr=0.1, beta1=0.0, beta2=0.75, eps=1e-6)
    zero, still = torch.zeros(4), torch.ones(4)
    lamb_triton.lamb_step_triton(zero, torch.ones(4), lamb.moments(zero), 1, lamb)
    torch.testing.assert_close(zero, torch.full((4,), -0.1), rtol=1e-5, atol=0)
    lamb_triton.lamb_step_triton(still, torch.zeros(4), lamb.moments(still), 1, lamb)
    assert torch.equal(still, torch.ones(4))
