"""The dtype a model is run in: its own where the processor multiplies it natively."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from oaem.models import precision
from oaem.runtime.processor import Processor


@pytest.mark.parametrize(
    ("own", "flags", "expected"),
    [
        ("bfloat16", {"avx2"}, torch.float32),
        ("bfloat16", {"avx512_bf16"}, torch.bfloat16),
        ("float16", {"avx512_bf16"}, torch.float32),
        ("float32", {"avx512_bf16"}, torch.float32),
    ],
)
def test_the_cpu_decides(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, flags: set[str], expected: torch.dtype
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": own}))
    monkeypatch.setattr(precision, "processor", lambda: Processor("name", "kind", "vendor", frozenset(flags)))
    assert precision.compute_dtype(folder, "cpu") is expected
