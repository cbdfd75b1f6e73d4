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
