from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oaem.pv.straight_through import groups_to_change, reencode, reencode_reference
from oaem.quantization.weight import dequantize
from oaem.runtime.seeds import generator

OUT, GROUPS = 12, 9


def _weight(m: int, size: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(m * size + width)
    codes = torch.randint(size, (OUT, GROUPS, m), generator=random)
    codes = codes.to(torch.uint8 if size <= 256 else torch.int32)
    codebooks = torch.randn(m, size, width, generator=random, dtype=dtype)
    return codes, codebooks, torch.rand(OUT, generator=random, dtype=dtype) + 0.5


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
@pytest.mark.parametrize(("m", "size", "width"), [(1, 16, 4), (2, 16, 4), (3, 8, 2), (2, 300, 4)])
def test_reencoding_equals_the_definition(m: int, size: int, width: int, share: float) -> None:
    codes, codebooks, scales = _weight(m, size, width, torch.float32)
    scales[3] *= -1  # scales are learnt and may change sign
    random = torch.Generator().manual_seed(5)
    buffer = dequantize(codes, codebooks, scales)
    buffer = buffer + torch.randn(buffer.shape, generator=random) * torch.rand(buffer.shape, generator=random)
    order = torch.randperm(m, generator=generator(7, "walk")).tolist()
    expected = reencode_reference(codes, codebooks, scales, buffer, share, order)
    before = codes.clone()
    weight, changed = reencode(codes, codebooks, scales, buffer, share, generator(7, "walk"))
    assert torch.equal(codes.int(), expected.int())
    assert changed == int((codes.int() != before.int()).sum())
    assert torch.equal(weight, dequantize(codes, codebooks, scales))
    changed_groups = int((codes.int() != before.int()).any(dim=2).sum())
    assert 0 < changed_groups <= groups_to_change(OUT * GROUPS, share)


def test_only_the_farthest_groups_change_and_come_nearer() -> None:
    codes, codebooks, scales = _weight(2, 16, 4, torch.float32)
    buffer = dequantize(codes, codebooks, scales)
    target = codes.clone().int()
    target[4, 5] = (target[4, 5] + 3) % 16
    buffer.view(OUT, GROUPS, 4)[4, 5] = dequantize(target, codebooks, scales).view(OUT, GROUPS, 4)[4, 5]
    before = codes.clone()
    weight, _ = reencode(codes, codebooks, scales, buffer, 1 / 1000, generator(0))
    moved = (codes != before).any(dim=2).nonzero().tolist()
    assert moved == [[4, 5]]
    assert float((weight - buffer).norm()) < float((dequantize(before, codebooks, scales) - buffer).norm())


def test_a_row_of_scale_zero_stays_zero_and_finite() -> None:
    codes, codebooks, scales = _weight(2, 16, 4, torch.float32)
    scales[2] = 0
    weight, _ = reencode(codes, codebooks, scales, torch.ones(OUT, GROUPS * 4), 1.0, generator(0))
    assert bool(torch.isfinite(weight).all())
    assert not weight[2].any()


def test_the_share_is_rounded_up_in_decimals() -> None:
    assert [groups_to_change(n, 0.01) for n in (1, 99, 100, 101, 700, 147456)] == [1, 1, 1, 2, 7, 1475]
    assert groups_to_change(50, 1.0) == 50
    assert groups_to_change(10**6, 1e-05) == 10
