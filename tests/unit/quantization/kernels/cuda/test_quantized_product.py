"""Linears that share an input, multiplied as one, against each of them alone in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("tests.unit.interpreter")

from oaem.quantization.kernels.cuda import quantized_product
from oaem.quantization.kernels.cuda.gated import gated
from oaem.quantization.kernels.cuda.mixed_precision import quantized_linears
from oaem.quantization.kernels.cuda.quantized_product import SharedInput, side_by_side
from oaem.quantization.linear import QuantizedLinear
from oaem.quantization.weight import AdditiveWeight
from tests.unit.interpreter import randn

COLUMNS = 24


def quantised(out: int, bias: bool = False, size: int = 16, group_size: int = 8) -> QuantizedLinear:
    draws = torch.Generator().manual_seed(out)
    codes = torch.randint(0, size, (out, COLUMNS // group_size, 2), generator=draws).to(torch.uint8)
    weight = AdditiveWeight(codes, randn(2, size, group_size, seed=out), 0.5 + randn(out, seed=out).abs())
    return QuantizedLinear(weight, randn(out, seed=1) if bias else None)


def exact(linear: QuantizedLinear, inputs: Tensor) -> Tensor:
    """From plain indexing, in float64."""
    codebooks, row_scales = linear.codebooks.double(), linear.row_scales.double()
    groups = sum(book[linear.codes[..., m].long()] for m, book in enumerate(codebooks))
    product = inputs.double() @ (groups.flatten(1) * row_scales[:, None]).T
    return product if linear.bias is None else product + linear.bias.double()


@pytest.mark.parametrize("outs", [(5,), (5, 3, 3), (7, 4)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_products_and_gradients_are_those_of_each_linear_alone(outs: tuple[int, ...], bias: bool) -> None:
    linears = [quantised(out, bias) for out in outs]
    shared = SharedInput(linears)
    inputs = randn(2, 6, COLUMNS).bfloat16().requires_grad_()
    incoming = [randn(2, 6, out, seed=2).bfloat16() for out in outs]
    learning = [inputs, *(parameter for linear in linears for parameter in linear.parameters())]
    with shared.stacked():
        found = [shared.forward(index, inputs) for index in range(len(outs))]
        gradients = torch.autograd.grad(
            found, learning, [part.to(one.dtype) for part, one in zip(incoming, found, strict=True)]
        )
    expected = [exact(linear, inputs) for linear in linears]
    exact_gradients = torch.autograd.grad(expected, learning, [part.double() for part in incoming])
    assert not shared.waiting and shared.inputs is None
    for ours, wanted in zip((*found, *gradients), (*expected, *exact_gradients), strict=True):
        # Weights and results are bfloat16, 0.2 % off in the mean.
        assert float((ours - wanted).detach().norm() / wanted.detach().norm()) < 0.005


def test_they_are_multiplied_once_and_other_calls_are_right_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    count = []
    dequantize = quantized_product.dequantize_triton
    monkeypatch.setattr(
        quantized_product, "dequantize_triton", lambda *parts: count.append(len(parts[0])) or dequantize(*parts)
    )
    linears = [quantised(5), quantised(3)]
    shared, first, second = SharedInput(linears), randn(4, COLUMNS, seed=3), randn(4, COLUMNS, seed=4)

    def check(index: int, inputs: Tensor) -> None:
        found, wanted = shared.forward(index, inputs), exact(linears[index], inputs)
        assert float((found - wanted).detach().norm() / wanted.detach().norm()) < 0.01

    with shared.stacked():
        for index, inputs in ((0, first), (1, first), (1, second), (0, second)):
            check(index, inputs)
        assert count == [8, 8]
        for index, inputs in ((0, first), (0, first), (1, second), (0, first), (0, second), (1, second)):
            check(index, inputs)


def test_parameters_changed_in_place_count_and_are_their_own_again_afterwards() -> None:
    linears, inputs = [quantised(5), quantised(3)], randn(4, COLUMNS)
    before = [parameter.detach().clone() for linear in linears for parameter in linear.parameters()]
    shared = SharedInput(linears)
    with shared.stacked(), torch.no_grad():
        for linear in linears:
            for parameter in linear.parameters():
                parameter.add_(1)
        for index, linear in enumerate(linears):
            found, wanted = shared.forward(index, inputs), exact(linear, inputs)
            assert float((found - wanted).norm() / wanted.norm()) < 0.01
    parameters = [parameter for linear in linears for parameter in linear.parameters()]
    assert all(torch.equal(*pair) for pair in zip(parameters, [part + 1 for part in before], strict=True))
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == len(parameters)
    assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in parameters)


def test_parts_of_one_tensor_are_taken_as_they_lie() -> None:
    whole = randn(2, 3, 10)
    parts = whole.split([4, 5, 1], -1)
    joined = side_by_side(parts)
    assert torch.equal(joined, whole) and joined.data_ptr() == whole.data_ptr()
    assert side_by_side([whole]).data_ptr() == whole.data_ptr()


@pytest.mark.parametrize(
    "order", [(1, 0, 2), (0, 2), (0, 0, 1), (1, 2)], ids=["turned", "a gap", "twice", "without the first"]
)
def test_other_parts_are_copied(order: tuple[int, ...]) -> None:
    whole = randn(2, 3, 10)
    parts = [whole.split([4, 4, 2], -1)[index] for index in order]
    joined = side_by_side(parts)
    assert torch.equal(joined, torch.cat(parts, -1)) and joined.data_ptr() != whole.data_ptr()
    apart = [part.clone() for part in parts]
    assert torch.equal(side_by_side(apart), torch.cat(parts, -1))


def test_the_gradients_of_a_gate_need_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made where the gradient of the one product of gate and up is read."""
    found = []
    take = quantized_product.side_by_side
    monkeypatch.setattr(
        quantized_product,
        "side_by_side",
        lambda parts: found.append((parts[0].data_ptr(), take(parts))) or found[-1][1],
    )
    linears = [quantised(12), quantised(12)]
    shared, inputs = SharedInput(linears), randn(1, 6, COLUMNS).bfloat16()
    with shared.stacked():
        gated(shared.forward(0, inputs), shared.forward(1, inputs)).sum().backward()
    ((first, joined),) = found
    assert joined.shape == (1, 6, 24) and joined.data_ptr() == first


class Attention(nn.Module):
    def __init__(self, *linears: nn.Module) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = linears


def test_linears_share_by_name_and_geometry() -> None:
    whole = Attention(quantised(5), quantised(3), quantised(3), quantised(5))
    assert quantized_linears(whole) == [[whole.q_proj, whole.k_proj, whole.v_proj], [whole.o_proj]]
    partly = Attention(nn.Linear(COLUMNS, 5), quantised(3), quantised(3), quantised(5))
    assert quantized_linears(partly) == [[partly.k_proj], [partly.v_proj], [partly.o_proj]]
    mixed = Attention(quantised(5), quantised(3, size=32), quantised(3), nn.Linear(COLUMNS, 5))
    assert quantized_linears(mixed) == [[mixed.q_proj], [mixed.k_proj], [mixed.v_proj]]
    assert quantized_linears(nn.Sequential(nn.Linear(2, 2))) == []
