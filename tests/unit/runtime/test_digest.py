"""The quick checksum of tensors."""

from __future__ import annotations

import pytest
import torch

from oaem.runtime.digest import digest


@pytest.mark.parametrize("offset", [0, 2, 4, 6])
def test_a_digest_knows_a_tensor_by_its_bytes_alone(offset: int) -> None:
    """Wherever it begins in memory, and whichever bit flips."""
    tensor = torch.randn(70_001, generator=torch.Generator().manual_seed(0)).bfloat16()
    raw = torch.zeros(2 * len(tensor) + offset, dtype=torch.uint8)
    raw[offset:] = tensor.view(torch.uint8)
    moved = raw[offset:].view(torch.bfloat16)
    assert digest(moved) == digest(tensor)
    for place in (offset, offset + 65_535, offset + 65_536, len(raw) - 1):
        raw[place] ^= 128
        assert digest(moved) != digest(tensor)
        raw[place] ^= 128


def test_a_small_tensor_of_any_kind() -> None:
    for tensor in (torch.zeros(0), torch.tensor(1.0), torch.ones(3, 2).T, torch.arange(5, dtype=torch.uint8)):
        assert len(digest(tensor)) == 64
    assert digest(torch.zeros(3)) != digest(torch.zeros(4))
