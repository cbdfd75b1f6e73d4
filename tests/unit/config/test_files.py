"""Several files of a configuration: merged as Snakemake merges them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from snakemake.utils import update_config

from oaem.config.files import amended, read
from oaem.config.schema import load
from oaem.errors import UserError

BEFORE: dict[str, Any] = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": {"g": 1}, "h": [1]}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"a": 2},
        {"b": {"c": [3]}},
        {"b": {"d": {"e": 1, "x": 2}}},
        {"f": 3},
        {"a": {"y": 1}},
        {"h": []},
        {"b": None},
    ],
)
def test_merged_as_snakemake_does(more: dict[str, Any]) -> None:
    expected, kept = copy.deepcopy(BEFORE), copy.deepcopy(BEFORE)
    update_config(expected, more)
    assert amended(BEFORE, more) == expected
    assert kept == BEFORE, "what is amended stays as it was"


def test_a_fault_names_all_files(tmp_path: Path) -> None:
    amendment = tmp_path / "more.yaml"
    amendment.write_text("threads: 0\n", encoding="utf-8")
    assert read(amendment) == {"threads": 0}
    with pytest.raises(UserError, match=r"config/evidence.yaml with .*more.yaml: 1 fault.*(?s:.)*threads"):
        load("config/evidence.yaml", amendment)
    amendment.write_text("threads: 2\n", encoding="utf-8")
    one, both = load("config/evidence.yaml"), load("config/evidence.yaml", amendment)
    assert both == one.model_copy(update={"threads": 2})
