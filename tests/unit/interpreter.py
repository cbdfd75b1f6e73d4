"""Imported first by the tests of Triton kernels: it skips them where Triton's interpreter cannot run."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", minversion="3.7", reason="needs Triton's interpreter, in a version that knows numpy 2.4")
if os.environ.get("TRITON_INTERPRET") != "1":
    # Read when Triton is first imported, which transformers may do, so only tests/conftest.py can set it in time.
    pytest.skip("TRITON_INTERPRET=1 is not set: the kernels run on CUDA (tests/gpu)", allow_module_level=True)

from triton.runtime import interpreter

_cast = interpreter._convert_float


def _cast_as_a_device(numbers: Any, source: Any, target: Any, rounding: Any) -> Any:
    """Triton's cast, but for float32 to bfloat16, where the interpreter cuts bits off and a device rounds."""
    if (str(source), str(target)) != ("fp32", "bf16"):
        return _cast(numbers, source, target, rounding)
    rounded = torch.from_numpy(np.array(numbers, dtype=np.float32, order="C")).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16)


interpreter._convert_float = _cast_as_a_device


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers that are the same everywhere."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
