"""Assignment and sums by code in Triton, through Triton's interpreter, against their plain twins."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tests.unit.interpreter")

from oaem.quantization.kernels.cuda.clusters import best_entries_triton, best_entry_sums_triton, sums_by_code_triton
from oaem.quantization.kernels.cuda.sorted_sums import SortedCodes
from tests.unit.interpreter import randn

SHAPES = [(8, 64), (6, 16), (16, 32)]  # g, K


@pytest.mark.parametrize(("group_size", "size"), SHAPES)
def test_best_entries_and_their_sums(group_size: int, size: int) -> None:
    vectors, maps, offsets = randn(2, 70, group_size), randn(2, group_size, size, seed=1), randn(2, size, seed=2)
    scores = offsets[:, None] + vectors @ maps
    codes = best_entries_triton(vectors, maps, offsets)
    assert torch.equal(codes, scores.argmin(2).int())
    sums, counts = best_entry_sums_triton(vectors[0], maps[0], offsets[0])
    labels = scores[0].argmin(1)
    assert torch.equal(counts, torch.bincount(labels, minlength=size))
    torch.testing.assert_close(sums, torch.zeros(size, group_size).index_add_(0, labels, vectors[0]))


def test_the_lowest_of_equal_entries_wins() -> None:
    assert not best_entries_triton(randn(1, 40, 4), torch.zeros(1, 4, 16), torch.zeros(1, 16)).any()


@pytest.mark.parametrize(("group_size", "size"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_sums_by_code(group_size: int, size: int, dtype: torch.dtype) -> None:
    codes = torch.randint(0, size, (5, 9, 2), generator=torch.Generator().manual_seed(3)).to(dtype)
    values, row_scales = randn(5, 9 * group_size), randn(5, seed=1)
    groups = (values * row_scales[:, None]).view(-1, group_size)
    expected = [torch.zeros(size, group_size).index_add_(0, codes[..., m].flatten().long(), groups) for m in range(2)]
    torch.testing.assert_close(sums_by_code_triton(values, row_scales, codes, size), torch.stack(expected))
    torch.testing.assert_close(SortedCodes(codes, size).sums(values, row_scales), torch.stack(expected))
