"""Sums by sorted codes in Triton, through Triton's interpreter, against their plain twin."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tests.unit.interpreter")

from oaem.quantization.kernels.cuda.sorted_sums import SortedCodes
from tests.unit.interpreter import randn


def test_sorted_sums_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oaem.quantization.kernels.cuda.sorted_sums.CHUNK", 1)
    monkeypatch.setattr("oaem.quantization.kernels.cuda.sorted_sums.MEAN_SEGMENT", 4)
    codes = torch.randint(0, 3, (7, 11, 2), generator=torch.Generator().manual_seed(3))
    codes[codes == 1] = 2  # a code that never occurs
    order = SortedCodes(codes, 4)
    assert order.shape == (5, 2, 4)  # 77 groups in chunks of 16
    groups = randn(77, 8)
    expected = [torch.zeros(4, 8).index_add_(0, codes[..., m].flatten(), groups) for m in range(2)]
    found = order.sums(groups.view(7, 88).bfloat16(), torch.ones(7))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-2, atol=1e-1)
    torch.testing.assert_close(order.sums(groups.view(7, 88), torch.ones(7)), torch.stack(expected))


def test_layers_in_one_are_the_sums_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oaem.quantization.kernels.cuda.sorted_sums.CHUNK", 1)
    monkeypatch.setattr("oaem.quantization.kernels.cuda.sorted_sums.MEAN_SEGMENT", 8)
    parts = [torch.randint(0, 4, (out, 3, 2), generator=torch.Generator().manual_seed(out)) for out in (7, 5)]
    values, scales = randn(12, 24), randn(12, seed=1)
    together = SortedCodes(torch.cat([parts[0], parts[1] + 8]), 4, layers=2)
    assert together.shape == (2, 2, 2, 4)  # 36 groups in chunks of 32
    found = together.sums(values, scales)
    for index, (codes, rows) in enumerate(zip(parts, (slice(0, 7), slice(7, 12)), strict=True)):
        torch.testing.assert_close(found[index], SortedCodes(codes, 4).sums(values[rows], scales[rows]))
