"""The count of a GPU's memory that a run's measurements carry."""

import pytest
import torch

from oaem.runtime.devices import peak_memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_what_was_let_go_still_counts() -> None:
    torch.cuda.reset_peak_memory_stats()
    before = peak_memory("cuda:0")
    held = torch.empty(256 << 20, dtype=torch.uint8, device="cuda:0")
    del held
    after = peak_memory("cuda:0")
    assert before is not None
    assert after is not None
    assert after - before >= 255 << 20, "the most at once, not what is held now"
