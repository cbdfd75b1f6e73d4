"""PV-tuning on two CUDA devices, which NCCL connects: the same bytes on every run, and near those of one device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from oaem.pv import outcomes
from oaem.pv.plan import Placement
from oaem.pv.team import ALONE
from oaem.runtime.ranks import run_ranks
from tests.gpu.pair import run
from tests.gpu.test_pv import SHAPE
from tests.unit.pv.toy import make_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def test_two_devices_leave_the_same_bytes_and_come_near_one(tmp_path: Path) -> None:
    """Losses to 1%: the shapes of products differ, so bfloat16 rounds them elsewhere."""
    model = make_model(tmp_path / "model", **SHAPE)
    told = {"model": str(model), "place": str(tmp_path)}
    run_ranks("tests.gpu.pair", told, ["cuda:0", "cuda:1"], 1, tmp_path / "log")
    run(model, tmp_path / "alone", Placement(), "cuda:0", ALONE)
    whole, other, alone = (
        json.loads((tmp_path / name / outcomes.RESULT).read_text()) for name in ("whole", "other", "alone")
    )
    assert {**other, "seconds": 0} == {**whole, "seconds": 0}
    for name in outcomes.OUTCOMES:
        pair = [(tmp_path / folder / f"{name}.safetensors").read_bytes() for folder in ("whole", "other")]
        assert pair[0] == pair[1], name
    assert whole["losses"] == pytest.approx(alone["losses"], rel=1e-2)
    assert whole["epochs"][-1]["codes_changed"] > 0
