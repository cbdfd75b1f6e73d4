"""One undisturbed pipeline for the session, and copies of its inputs to disturb."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import save_tiny_model
from tests.faults.pipeline import Pipeline
from tests.workflow.conftest import tiny_config, write_corpus

BLOCKS = 6
TOKEN_SETS = ("calibration-s42", "eval-near", "eval-far", "pv-s42", "pv-validation")
Fresh = Callable[..., Pipeline]


def faults_config(model: Path, corpus: Path) -> dict[str, Any]:
    """One run of six blocks in one job, PV-tuning of 20 steps that saves each, and perplexity of some seconds."""
    values = tiny_config(model, corpus)
    values["models"]["tiny"]["blocks"] = BLOCKS
    values["quantization"]["blocks_per_job"] = "all"
    values["grid"][0]["init"] = ["oaem"]
    values["quantization"]["oaem"]["steps"] = 200
    for domain in values["evaluation"]["perplexity"].values():
        domain["text"]["windows"] = 48
    text = {"corpus": "train", "protocol": "concatenated", "window": 32, "windows": 20}
    values["pv"] = {
        "text": text, "validation_text": {**text, "windows": 4}, "test": "far", "epochs": 4, "batch_size": 4,
        "save_every": 1, "gradient_checkpointing": False,
    }  # fmt: skip
    return values


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Model and tokens, made by the real scripts."""
    folder = tmp_path_factory.mktemp("inputs")
    model = save_tiny_model(folder / "model", "llama", tied=True, blocks=BLOCKS)
    write_corpus(folder / "corpus")
    pipeline = Pipeline(folder, faults_config(model, folder / "corpus"))
    pipeline.make(pipeline.model(), *(pipeline.tokens(name) for name in TOKEN_SETS))
    return pipeline


@pytest.fixture(scope="session")
def whole(inputs: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Everything, undisturbed: what every disturbed pipeline must end with."""
    pipeline = copied(inputs, tmp_path_factory.mktemp("whole"))
    pipeline.make(
        pipeline.quantize(), pipeline.quantized(), pipeline.pv_tune(),
        *(pipeline.perplexity(stage) for stage in ("pre_pv", "post_pv")),
    )  # fmt: skip
    return pipeline


@pytest.fixture
def fresh(inputs: Pipeline, tmp_path: Path) -> Fresh:
    """fresh(pipeline): a copy of the inputs, or of another pipeline with all it has made."""

    def make(origin: Pipeline | None = None, name: str = "disturbed") -> Pipeline:
        return copied(origin or inputs, tmp_path / name)

    return make


def copied(origin: Pipeline, folder: Path) -> Pipeline:
    shutil.copytree(origin.folder / "results", folder / "results")
    return Pipeline(folder, copy.deepcopy(origin.values))
