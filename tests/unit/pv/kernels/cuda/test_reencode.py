"""Re-encoding in Triton, through Triton's interpreter, against its definition."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tests.unit.interpreter")

from oaem.pv.kernels.cuda.reencode import reencode_farthest_triton, squared_distances_triton, walk_triton
from oaem.pv.straight_through import reencode_farthest, reencode_reference
from oaem.quantization.weight import dequantize
from tests.unit.interpreter import randn


@pytest.mark.parametrize(("m", "size", "width"), [(2, 16, 8), (3, 64, 6)])
def test_distances(m: int, size: int, width: int) -> None:
    codes = torch.randint(size, (5, 9, m), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    codebooks, scales, buffer = randn(m, size, width), randn(5, seed=2), randn(5, 9 * width, seed=3)
    found = squared_distances_triton(codes, codebooks, scales, buffer)
    expected = (buffer - dequantize(codes, codebooks, scales)).view(-1, width).square().sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("m", "size", "width"), [(1, 16, 4), (2, 40, 8), (3, 8, 6)])
def test_walks(m: int, size: int, width: int) -> None:
    """Every group takes part, so the codes equal those of the definition."""
    draws = torch.Generator().manual_seed(m)
    codes = torch.randint(size, (5, 9, m), generator=draws).to(torch.uint8)
    codebooks, scales = randn(m, size, width), randn(5, seed=2)
    buffer = randn(5, 9 * width, seed=3)
    order = torch.randperm(m, generator=draws).tolist()
    expected, before = reencode_reference(codes, codebooks, scales, buffer, 1.0, order), codes.clone()
    chosen = torch.randperm(45, generator=draws)
    changed = walk_triton(codes, codebooks, scales, buffer, chosen, order)
    assert torch.equal(codes.int(), expected.int())
    assert int(changed) == int((codes != before).sum()) > 0
    scales[2], codes = 0, before.clone()
    walk_triton(codes, codebooks, scales, buffer, chosen[:20], order)
    untouched = torch.ones(45, dtype=torch.bool).index_fill(0, chosen[:20], False)
    assert torch.equal(codes.view(45, m)[untouched], before.view(45, m)[untouched])
    assert int(codes.max()) < size


def test_the_farthest_groups_are_walked() -> None:
    draws = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (5, 9, 2), generator=draws).to(torch.uint8)
    arguments, before = (randn(2, 16, 8), randn(5, seed=2), randn(5, 72, seed=3), 11, [1, 0]), codes.clone()
    ours, theirs = codes.clone(), codes.clone()
    weight, changed = reencode_farthest_triton(ours, *arguments)
    expected, wanted = reencode_farthest.oracle(theirs, *arguments)
    assert torch.equal(ours, theirs) and int(changed) == int(wanted) == int((ours != before).sum())
    torch.testing.assert_close(weight, expected)
