"""In which number format a model is run: its own where the device multiplies it natively, else float32."""

from __future__ import annotations

from pathlib import Path

import torch

from oaem.models.load import load_config
from oaem.runtime.processor import processor

# What Linux calls the instruction sets that multiply bfloat16; without one a CPU emulates it, slower than float32.
NATIVE_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


def compute_dtype(folder: Path | str, device: torch.device | str) -> torch.dtype:
    """The dtype that the model in `folder` is stored and run in on `device`."""
    own = load_config(folder).dtype or torch.float32
    return own if own == torch.float32 or is_native(own, device) else torch.float32


def is_native(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether `device` multiplies matrices of `dtype` natively; checked on the machine at hand."""
    if torch.device(device).type == "cuda":
        return dtype != torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)
    return dtype == torch.bfloat16 and bool(NATIVE_BFLOAT16 & processor().flags)
