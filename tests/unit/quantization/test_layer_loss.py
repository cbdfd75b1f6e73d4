"""The layer's loss and its gradients against autograd."""

from __future__ import annotations

import pytest
import torch

from oaem.quantization.layer_loss import LayerLoss, layer_loss
from tests.unit.quantization.toy_layers import defined_loss, with_fixed_codes


def test_loss_and_gradient_equal_autograd() -> None:
    weight, hessian, codes, codebooks, row_scales = with_fixed_codes()
    loss, for_codebooks, for_scales = layer_loss(weight, hessian, codes, 6).value(codebooks, row_scales)
    codebooks.requires_grad_(True), row_scales.requires_grad_(True)
    expected = defined_loss(weight, hessian, codes, codebooks, row_scales)
    gradients = torch.autograd.grad(expected, (codebooks, row_scales))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(for_codebooks, gradients[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(for_scales, gradients[1], rtol=1e-10, atol=1e-12)


def test_float32_with_a_float64_trace_agrees_with_float64() -> None:
    precise = with_fixed_codes(out=200, groups=32, size=16)
    narrow = [tensor.float() if tensor.is_floating_point() else tensor for tensor in precise]
    exact, *gradients = layer_loss(*precise[:3], 16).value(*precise[3:])
    loss, *approximations = layer_loss(*narrow[:3], 16).value(*narrow[3:])
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)
    for approximation, gradient in zip(approximations, gradients, strict=True):
        assert (approximation - gradient).norm() < 2e-6 * gradient.norm()


def test_the_fast_path_agrees_with_the_oracle() -> None:
    """In float32, whose rounding is all that they differ by; gathered in float64 by either."""
    layer = [
        part.float() if part.is_floating_point() else part for part in with_fixed_codes(out=200, groups=32, size=16)
    ]
    fast, plain = layer_loss(*layer[:3], 16), layer_loss.oracle(*layer[:3], 16)
    assert type(plain) is LayerLoss
    assert type(fast) is not LayerLoss
    assert type(layer_loss(*(part.double() for part in layer[:2]), layer[2], 16)) is LayerLoss
    for found, expected in zip(fast.value(*layer[3:]), plain.value(*layer[3:]), strict=True):
        assert (found - expected).norm() < 2e-6 * expected.norm()
