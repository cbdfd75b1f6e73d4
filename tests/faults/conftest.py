"""One undisturbed pipeline for the session, and copies of its inputs to disturb."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import save_tiny_model
from tests.faults.pipeline import Pipeline
from tests.workflow.conftest import Workflow, tiny_config, write_corpus

if TYPE_CHECKING:
    from tests.shared import MadeOnce

BLOCKS = 6
TOKEN_SETS = ("calibration-s42", "eval-near", "eval-far", "pv-s42", "pv-validation")
Fresh = Callable[..., Pipeline]


def faults_config(model: Path, corpus: Path) -> dict[str, Any]:
    """One run of six blocks in one job, PV-tuning of 20 steps that saves each, and perplexity of some seconds."""
    values = tiny_config(model, corpus)
    values["models"]["tiny"]["blocks"] = BLOCKS
    values["quantization"]["blocks_per_job"] = "all"
    values["quantization"]["calibration"]["windows"] = 4
    values["grid"][0]["init"] = ["oaem"]
    values["quantization"]["oaem"]["steps"] = 80
    for domain in values["evaluation"]["perplexity"].values():
        domain["text"]["windows"] = 12
    text = {"corpus": "train", "protocol": "concatenated", "window": 32, "windows": 20}
    values["pv"] = {
        "text": text, "validation_text": {**text, "windows": 4}, "test": "far", "epochs": 4, "batch_size": 4,
        "save_every": 1, "gradient_checkpointing": False,
    }  # fmt: skip
    return values


@pytest.fixture(scope="session")
def inputs(made_once: MadeOnce) -> Pipeline:
    """Model and tokens, made by the real scripts."""
    model = made_once("llama-of-six", lambda folder: save_tiny_model(folder, "llama", tied=True, blocks=BLOCKS))
    values = faults_config(model, made_once("corpus", write_corpus))

    def make(folder: Path) -> None:
        pipeline = Pipeline(folder, values)
        pipeline.make(pipeline.model(), *(pipeline.tokens(name) for name in TOKEN_SETS))

    return Pipeline(made_once("inputs", make), values)


@pytest.fixture(scope="session")
def whole(made_once: MadeOnce, inputs: Pipeline) -> Pipeline:
    """Everything, undisturbed: what every disturbed pipeline must end with."""

    def make(folder: Path) -> None:
        pipeline = copied(inputs, folder)
        pipeline.make(
            pipeline.quantize(), pipeline.quantized(), pipeline.pv_tune(),
            *(pipeline.perplexity(stage) for stage in ("pre_pv", "post_pv")),
        )  # fmt: skip

    return Pipeline(made_once("whole", make), inputs.values)


@pytest.fixture
def fresh(inputs: Pipeline, tmp_path: Path) -> Fresh:
    """fresh(pipeline): a copy of the inputs, or of another pipeline with all it has made."""

    def make(origin: Pipeline | None = None, name: str = "disturbed") -> Pipeline:
        return copied(origin or inputs, tmp_path / name)

    return make


@pytest.fixture
def grid(inputs: Pipeline, tmp_path: Path) -> Workflow:
    """The grid of the undisturbed pipeline, its inputs made."""
    shutil.copytree(inputs.folder / "results", tmp_path / "results")
    return Workflow(tmp_path, inputs.values)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Every snakemake that was started; what is left of them and their jobs is ended with the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.wait()


def copied(origin: Pipeline, folder: Path) -> Pipeline:
    shutil.copytree(origin.folder / "results", folder / "results")
    return Pipeline(folder, copy.deepcopy(origin.values))
