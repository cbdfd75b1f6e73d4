"""A model's shape before it is loaded: from its config.json, the configuration, or the paper's model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oaem.config.schema import load
from oaem.models.load import linear_shapes
from oaem.planning import layout, shapes


def test_the_linears_are_those_of_the_model(tiny_model) -> None:
    for family in ("llama", "qwen2", "gemma3_text"):  # Gemma's heads do not add up to its hidden size
        folder = tiny_model(family)
        shape = shapes.from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        assert sorted(shape.linears()) == sorted(linear_shapes(folder).values())


def test_a_model_that_is_there_is_asked_itself(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load("config/three-models.yaml")
    monkeypatch.chdir(tmp_path)
    said = shapes.known(config, "gemma-3-270m")
    assert said == shapes.Shape(640, 2048, 1024, 256, 262144)
    folder = Path(layout.model_manifest("gemma-3-270m")).parent / "hf"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    assert shapes.known(config, "gemma-3-270m") == shapes.Shape(48, 96, 48, 24, 320, 3)


def test_the_papers_models_are_planned_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("config/paper.yaml")
    monkeypatch.chdir(tmp_path)
    assert shapes.known(config, "llama-3.1-8b") is None
    assert shapes.planned(config, "llama-3.1-8b") == shapes.PAPER["Llama 8B"]
