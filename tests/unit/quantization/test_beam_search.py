from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from oaem.quantization.beam_search import beam_search
from oaem.quantization.kernels.cpu import beam_search as compiled
from oaem.quantization.search_order import SearchOrder, draw_order
from oaem.quantization.weight import dequantize

Layer = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def random_layer(out: int, columns: int, m: int, bits: int, g: int, seed: int = 0) -> Layer:
    """weight, hessian, codes, codebooks and row_scales of a layer whose inputs are correlated, in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(3 * columns, columns, generator=generator, dtype=torch.float64)
    inputs = inputs + torch.randn(3 * columns, 1, generator=generator, dtype=torch.float64)
    inputs *= 0.2 + 2 * torch.rand(columns, generator=generator, dtype=torch.float64)
    codebooks = torch.randn(m, 2**bits, g, generator=generator, dtype=torch.float64) / columns**0.5
    codes = torch.randint(0, 2**bits, (out, columns // g, m), generator=generator, dtype=torch.int32)
    return weight, inputs.T @ inputs / len(inputs), codes, codebooks, weight.norm(dim=1)


def integer_layer(out: int, columns: int, m: int, bits: int, g: int, seed: int = 0) -> Layer:
    """A layer of small integers: float32 computes it without rounding, so every path must agree, ties included."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator).float()

    inputs = draw(-1, 1, 8, columns)
    codes = torch.randint(0, 2**bits, (out, columns // g, m), generator=generator, dtype=torch.int32)
    return draw(-5, 5, out, columns), inputs.T @ inputs, codes, draw(-2, 2, m, 2**bits, g), draw(1, 2, out)


def in_float32(layer: Layer) -> Layer:
    weight, hessian, codes, codebooks, row_scales = layer
    return weight.float(), hessian.float(), codes, codebooks.float(), row_scales.float()


def objective(layer: Layer, codes: Tensor) -> Tensor:
    """(w^ - w) H (w^ - w)^T of every row [out]."""
    weight, hessian, _, codebooks, row_scales = layer
    difference = dequantize(codes, codebooks, row_scales) - weight
    return ((difference @ hessian) * difference).sum(1)


def order_of(layer: Layer, seed: int = 3) -> SearchOrder:
    return draw_order(layer[2].shape[1], layer[2].shape[2], torch.Generator().manual_seed(seed))


def brute_force_row(layer: Layer, row: int, beam_width: int, order: SearchOrder) -> Tensor:
    """The same search of one row, every candidate's objective recomputed from its whole row."""
    weight, hessian, codes, codebooks, row_scales = layer
    beam = [codes[row]]
    for position, group in enumerate(order.groups.tolist()):
        for m in order.codebooks[position].tolist():
            candidates, values = [], []
            for hypothesis, code in product(beam, range(codebooks.shape[1])):
                candidate = hypothesis.clone()
                candidate[group, m] = code
                difference = dequantize(candidate[None], codebooks, row_scales[row : row + 1])[0] - weight[row]
                candidates.append(candidate)
                values.append(float(difference @ hessian @ difference))
            beam = [candidates[i] for i in torch.tensor(values).argsort(stable=True)[:beam_width].tolist()]
    return beam[0]


@pytest.mark.parametrize(("m", "beam_width"), [(1, 1), (2, 1), (2, 3), (3, 4)])
def test_reference_equals_recomputing_every_candidate(m: int, beam_width: int) -> None:
    layer = random_layer(3, 12, m, 2, 3, seed=m)
    order = order_of(layer)
    found = beam_search.oracle(*layer, beam_width, order)
    for row in range(3):
        assert torch.equal(found[row], brute_force_row(layer, row, beam_width, order))


@pytest.mark.parametrize("search", [beam_search.oracle, beam_search])
def test_a_beam_that_drops_nothing_is_exhaustive(search) -> None:
    layer = random_layer(4, 6, 2, 1, 3, seed=5)
    layer = layer if search == beam_search.oracle else in_float32(layer)
    every = torch.tensor(list(product(range(2), repeat=4)), dtype=torch.int32).view(-1, 2, 2)
    best = [min(float(objective(layer, codes.expand(4, 2, 2))[row]) for codes in every) for row in range(4)]
    found = search(*layer, 16, order_of(layer))
    torch.testing.assert_close(objective(layer, found), torch.tensor(best, dtype=layer[0].dtype), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("g", [4, 6, 8])
def test_compiled_equals_reference_without_rounding(m: int, bits: int, g: int) -> None:
    layer = integer_layer(5, 5 * 48, m, bits, g, seed=100 * m + 10 * bits + g)
    order = order_of(layer)
    for beam_width in (1, 3, 8):
        reference = beam_search.oracle(*layer, beam_width, order)
        assert torch.equal(beam_search(*layer, beam_width, order), reference)


@pytest.mark.parametrize("columns", [1, 8, 9, 40, 1000])
@pytest.mark.parametrize("groups", [1, 2, 5, 6])
def test_boundaries_of_lazy_blocks(monkeypatch: pytest.MonkeyPatch, columns: int, groups: int) -> None:
    monkeypatch.setattr(compiled, "LAZY_COLUMNS", columns)
    layer = integer_layer(7, 8 * groups, 2, 3, 8, seed=groups)
    order = order_of(layer)
    assert torch.equal(beam_search(*layer, 4, order), beam_search.oracle(*layer, 4, order))


@pytest.mark.parametrize(
    ("out", "m", "bits", "g", "beam_width"), [(1, 1, 12, 4, 2), (70, 2, 1, 5, 32), (130, 4, 2, 7, 2)]
)
def test_odd_shapes(out: int, m: int, bits: int, g: int, beam_width: int) -> None:
    layer = integer_layer(out, 6 * g, m, bits, g)
    order = order_of(layer)
    assert torch.equal(beam_search(*layer, beam_width, order), beam_search.oracle(*layer, beam_width, order))


def test_one_codebook_of_16_bits() -> None:
    layer = integer_layer(2, 12, 1, 16, 4)
    order = order_of(layer)
    assert torch.equal(beam_search(*layer, 3, order), beam_search.oracle(*layer, 3, order))


def test_compiled_agrees_with_the_reference_in_float64() -> None:
    """With rounding, near ties may fall either way; the objective must be as good and almost all rows the same."""
    layer = random_layer(100, 288, 2, 6, 6)
    order = order_of(layer)
    found, reference = beam_search(*in_float32(layer), 4, order), beam_search.oracle(*layer, 4, order)
    assert (found == reference).flatten(1).all(1).sum() >= 98
    torch.testing.assert_close(objective(layer, found).sum(), objective(layer, reference).sum(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("beam_width", [1, 4])
def test_never_worse_than_the_start(beam_width: int) -> None:
    layer = random_layer(20, 96, 2, 4, 4, seed=9)
    found = beam_search(*in_float32(layer), beam_width, order_of(layer))
    assert (objective(layer, found) <= objective(layer, layer[2]) * (1 + 1e-6)).all()


def test_same_bits_whatever_the_threads() -> None:
    layer = in_float32(random_layer(200, 192, 2, 6, 6))
    order, threads = order_of(layer), torch.get_num_threads()
    alone = beam_search(*layer, 4, order)
    try:
        torch.set_num_threads(3)
        assert torch.equal(beam_search(*layer, 4, order), alone)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_zero_rows_and_blind_columns() -> None:
    weight, hessian, codes, codebooks, row_scales = in_float32(random_layer(6, 48, 2, 4, 6))
    weight[2], row_scales[2] = 0, 1e-9
    row_scales[3] = 0
    hessian[:12], hessian[:, :12] = 0, 0
    layer = (weight, hessian, codes, codebooks, row_scales)
    found = beam_search(*layer, 4, order_of(layer))
    assert found.min() >= 0 and found.max() < 16
    assert (objective(layer, found) <= objective(layer, codes) * (1 + 1e-6)).all()


def test_order_is_a_walk_over_everything_and_repeats() -> None:
    order, again = (draw_order(40, 3, torch.Generator().manual_seed(7)) for _ in range(2))
    assert order.groups.sort().values.tolist() == list(range(40))
    assert (order.codebooks.sort(dim=1).values == torch.arange(3)).all()
    assert torch.equal(order.groups, again.groups) and torch.equal(order.codebooks, again.codebooks)
    assert len({tuple(row) for row in order.codebooks.tolist()}) > 1
