from __future__ import annotations

import pytest
import torch

from oaem.quantization.linear import QuantizedLinear
from oaem.quantization.weight import AdditiveWeight


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def random_weight() -> AdditiveWeight:
    codes = torch.randint(0, 8, (6, 5, 2), dtype=torch.uint8)
    return AdditiveWeight(codes, torch.randn(2, 8, 4), torch.rand(6))


@pytest.mark.parametrize("with_bias", [False, True])
def test_forward_equals_a_dense_linear(with_bias: bool) -> None:
    weight, bias = random_weight(), torch.randn(6) if with_bias else None
    linear = QuantizedLinear(weight, bias)
    inputs = torch.randn(2, 3, 20)
    torch.testing.assert_close(linear(inputs), torch.nn.functional.linear(inputs, weight.dequantize(), bias))
    assert (linear.in_features, linear.out_features) == (20, 6)


def test_what_learns_and_what_is_stored() -> None:
    linear = QuantizedLinear(random_weight(), torch.randn(6))
    assert sorted(name for name, _ in linear.named_parameters()) == ["bias", "codebooks", "row_scales"]
    assert sorted(linear.state_dict()) == ["bias", "codebooks", "codes", "row_scales"]
    linear(torch.randn(3, 20)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in linear.parameters())


def test_additive_weight_follows_training_and_is_independent_of_what_it_was_made_of() -> None:
    weight = random_weight()
    linear = QuantizedLinear(weight)
    with torch.no_grad():
        linear.codebooks.mul_(2)
    torch.testing.assert_close(linear.additive_weight().dequantize(), 2 * weight.dequantize())
    torch.testing.assert_close(linear.weight, 2 * weight.dequantize())


def test_half_precision_keeps_codes() -> None:
    linear = QuantizedLinear(random_weight(), torch.randn(6)).bfloat16()
    assert linear.codes.dtype == torch.uint8
    assert linear(torch.randn(2, 20, dtype=torch.bfloat16)).dtype == torch.bfloat16
