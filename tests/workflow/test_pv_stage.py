"""PV-tuning through the real workflow: what it leaves, and the same bytes when it is killed and resumed."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pandas as pd

from oaem.measurements.table import read_csv
from tests.workflow.conftest import Workflow

TARGETS = ("results/metrics.csv", "results/tables/table2.csv")
STATES = ("best_test", "best_validation", "last")


def tuned(workflow: Workflow) -> Workflow:
    """The same grid, one run of it, with PV-tuning of some twenty steps."""
    workflow.config["grid"][0]["init"] = ["oaem"]
    text = {"corpus": "train", "protocol": "concatenated", "window": 32, "windows": 20}
    workflow.config["pv"] = {
        "text": text,
        "validation_text": {**text, "windows": 4},
        "test": "far",
        "epochs": 4,
        "batch_size": 4,
        "save_every": 1,
        "gradient_checkpointing": False,
    }
    return workflow


def untuned(workflow: Workflow) -> Workflow:
    """The same before its tuning."""
    (folder,) = (workflow.folder / "results").glob("runs/**/pv")
    shutil.rmtree(folder)
    for later in (folder.parent / "metrics/post_pv-perplexity.json", *(workflow.folder / name for name in TARGETS)):
        later.unlink()
    return workflow


def states(workflow: Workflow) -> dict[str, bytes]:
    (folder,) = (workflow.folder / "results").glob("runs/**/pv")
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in STATES}


def test_a_killed_tuning_ends_with_the_same_bytes(finished: Workflow, tmp_path: Path) -> None:
    whole = tuned(finished.copied(tmp_path / "whole"))
    code, output = whole.run(*TARGETS)
    assert code == 0, output
    killed = untuned(whole.copied(tmp_path / "killed"))
    metrics = read_csv(whole.folder / "results/metrics.csv")
    stages = set(metrics[metrics.metric == "perplexity"].stage)
    assert stages == {"fp16", "pre_pv", "post_pv", "post_pv_validation", "post_pv_last"}
    before, after = (
        float(metrics[(metrics.stage == stage) & (metrics.dataset == "near")].value.iloc[0])
        for stage in ("pre_pv", "post_pv_last")
    )
    assert after != before
    table = pd.read_csv(whole.folder / "results/tables/table2.csv")
    assert table.filter(like="post").notna().any(axis=None)

    process = killed.start(*TARGETS)
    deadline = time.monotonic() + 300
    while not list((killed.folder / "results").glob("runs/**/pv/resume/step-*/manifest.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list((killed.folder / "results").glob("runs/**/pv/manifest.json"))
    assert killed.run("--unlock")[0] == 0
    code, output = killed.run(*TARGETS)
    assert code == 0, output
    assert "going on after step" in output
    assert states(killed) == states(whole)


def test_tuning_can_be_left_out(workflow: Workflow) -> None:
    tuned(workflow).config["pv"]["enabled"] = False
    code, output = workflow.run("-n", *TARGETS)
    assert code == 0, output
    assert "pv_tune" not in output
