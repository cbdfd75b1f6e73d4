"""PV-tuning by two ranks, which gloo connects, against one device; one start of torchrun makes all of it (pair.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from oaem.calibration.artefacts import load_state
from oaem.pv import outcomes, plan
from oaem.runtime.ranks import run_ranks
from tests.unit.pv.pair import EXACT, NEAR, SAVED, numbers
from tests.unit.pv.toy import make_model, run_toy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pair(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks have made their tunings."""
    place = tmp_path_factory.mktemp("pair")
    run_ranks("tests.unit.pv.pair", {"model": str(model), "place": str(place)}, ["cpu", "cpu"], 1, place / "log")
    return place


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def outcome_bytes(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in outcomes.OUTCOMES}


def assert_same(one: Path, other: Path) -> None:
    assert outcome_bytes(one) == outcome_bytes(other)
    assert {**read(one / outcomes.RESULT), "seconds": 0} == {**read(other / outcomes.RESULT), "seconds": 0}
    left = [path for folder in (one, other) for path in folder.iterdir()]
    assert not [path for path in left if path.is_dir() or path.suffix == ".cache"]


def test_what_ranks_tell_each_other(pair: Path) -> None:
    """Sums in the order of the ranks, to the bit; other ranks keep theirs."""
    told = [read(pair / f"told-{rank}.json") for rank in range(2)]
    total = (numbers(0) + numbers(1)).tolist()
    for owner in range(2):
        assert told[owner][f"sum to {owner}"] == total
        assert told[1 - owner][f"sum to {owner}"] == numbers(1 - owner).tolist()
        assert told[0][f"spread from {owner}"] == told[1][f"spread from {owner}"] == [[owner] * 3] * 2
    assert [each["share"] for each in told] == [[3, 1], [4, 1]]
    assert told[0]["numbers"] == told[1]["numbers"] == [[0, 0.1], [1, 0.1]]


def test_where_sums_have_one_order_two_ranks_leave_the_bits_of_one_device(
    model: Path, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything: losses, perplexities, codes and all else that is tuned. Only the fingerprint knows of the ranks."""
    monkeypatch.setattr(plan, "TOKENS_AT_ONCE", 1)
    alone, ours = run_toy(model, tmp_path, **EXACT), read(pair / "exact" / outcomes.RESULT)
    assert ours["losses"] == alone["losses"]
    for one, other in zip(ours["epochs"], alone["epochs"], strict=True):
        assert {**one, "sha256": ""} == {**other, "sha256": ""}
    for name in outcomes.OUTCOMES:
        (one, _), (other, _) = (load_state(folder / f"{name}.safetensors") for folder in (pair / "exact", tmp_path))
        for linear, weight in one.linears.items():
            for part in ("codes", "codebooks", "row_scales"):
                assert torch.equal(getattr(weight, part), getattr(other.linears[linear], part)), (linear, part)
        assert all(torch.equal(tensor, other.tensors[key]) for key, tensor in one.tensors.items())


def test_elsewhere_two_ranks_come_near_one_device(model: Path, pair: Path, tmp_path: Path) -> None:
    """Sums of float32 in another order: all losses to 1e-6, and codes but for near ties, of which here are none."""
    alone, ours = run_toy(model, tmp_path, **NEAR), read(pair / "near" / outcomes.RESULT)
    assert ours["losses"] == pytest.approx(alone["losses"], rel=1e-6)
    assert alone["epochs"][-1]["codes_changed"] > 0
    (one, _), (other, _) = (load_state(folder / "last.safetensors") for folder in (pair / "near", tmp_path))
    same = torch.cat([(one.linears[name].codes == other.linears[name].codes).flatten() for name in one.linears])
    assert float(same.float().mean()) > 0.999


def test_the_placement_changes_no_bit(pair: Path) -> None:
    assert_same(pair / "placed", pair / "near")


def test_all_ranks_stopped_they_go_on_to_the_same_bytes(pair: Path) -> None:
    assert_same(pair / "stopped", pair / "near")
    assert read(pair / "result-0.json") == read(pair / "result-1.json") == read(pair / "stopped" / outcomes.RESULT)
    assert read(pair / "resumed.json") == [f"PV-tuning: going on after step {SAVED} of 6"]
