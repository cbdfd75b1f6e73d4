"""Imported first by the tests of Triton kernels: it skips them where Triton's interpreter cannot run."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", minversion="3.7", reason="needs Triton's interpreter, in a version that knows numpy 2.4")
if os.environ.get("TRITON_INTERPRET") != "1":
    # Read when Triton is first imported, which transformers may do, so only tests/conftest.py can set it in time.
    pytest.skip("TRITON_INTERPRET=1 is not set: the kernels run on CUDA (tests/gpu)", allow_module_level=True)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers that are the same everywhere."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
