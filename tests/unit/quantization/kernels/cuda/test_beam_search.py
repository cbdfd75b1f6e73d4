"""The Triton beam search on the CPU, through Triton's interpreter, against the plain reference."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tests.unit.interpreter")

from oaem.quantization.beam_search import beam_search
from oaem.quantization.kernels.cuda import beam_search as compiled
from tests.unit.quantization.toy_layers import order_of, row_errors, toy_layer

# out, in, M, bits, g, beam width, columns of a lazy block
CASES = {
    "several blocks": (2, 48, 2, 4, 8, 4, 16),
    "last block shorter": (2, 40, 2, 3, 8, 2, 16),
    "group of six, width of three": (2, 36, 2, 3, 6, 3, 12),
    "beam wider than a codebook": (2, 16, 3, 2, 4, 8, 8),
    "classes of several codes": (1, 16, 1, 7, 8, 3, 8),
    "group of sixteen, width of one": (3, 64, 1, 3, 16, 1, 32),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_same_codes_as_the_reference(case: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    out, columns, num_codebooks, bits, group_size, beam_width, block = case
    monkeypatch.setattr(compiled, "BLOCK_COLUMNS", block)
    layer = toy_layer(out, columns, num_codebooks, bits, group_size)
    found = compiled.beam_search_triton(*layer, beam_width, order_of(layer))
    assert torch.equal(found, beam_search.oracle(*layer, beam_width, order_of(layer)))
    assert found.dtype == layer[2].dtype


def test_rows_that_do_not_fit_in_memory_are_searched_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = toy_layer(3, 16, 1, 3, 8)
    together = compiled.beam_search_triton(*layer, 2, order_of(layer))
    monkeypatch.setattr(compiled, "MEMORY", 1)
    assert torch.equal(compiled.beam_search_triton(*layer, 2, order_of(layer)), together)


def test_dead_inputs_and_ties_leave_a_valid_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that are always zero score every code alike; the reference breaks such ties by order, and so does this."""
    monkeypatch.setattr(compiled, "BLOCK_COLUMNS", 8)
    weight, hessian, codes, codebooks, row_scales = toy_layer(2, 24, 2, 3, 8)
    hessian[8:16], hessian[:, 8:16] = 0, 0
    layer = (weight, hessian, codes, codebooks, row_scales)
    found = compiled.beam_search_triton(*layer, 4, order_of(layer))
    assert torch.equal(found, beam_search.oracle(*layer, 4, order_of(layer)))
    assert bool((row_errors(layer, found) <= row_errors(layer, codes)).all())


def test_nan_stays_inside_the_arrays() -> None:
    weight, hessian, codes, codebooks, row_scales = toy_layer(2, 16, 1, 3, 8)
    weight[0, 3] = float("nan")
    layer = (weight, hessian, codes, codebooks, row_scales)
    found = compiled.beam_search_triton(*layer, 2, order_of(layer))
    assert int(found.min()) >= 0
    assert int(found.max()) < codebooks.shape[1]
    sound = tuple(part[1:] if part is weight or part is codes or part is row_scales else part for part in layer)
    assert torch.equal(found[1:], beam_search.oracle(*sound, 2, order_of(layer)))
