"""kill -9 of snakemake itself, with its jobs or without them, in every stage of one grid."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oaem.measurements.table import read_csv
from tests.faults.pipeline import RUN, Pipeline
from tests.reliability import SAME
from tests.workflow.conftest import Workflow

Record = Callable[[str, Any], None]
TARGET = "results/metrics.csv"
# In which job snakemake is killed, by its log, and whether the job dies with it or goes on beside its successor.
KILLS = [
    ("blocks-0000-0006", "with its job"), ("blocks-0000-0006", "alone"), ("pv_tune", "with its job"),
    ("pv_tune", "alone"), ("post_pv-perplexity", "with its job"),
]  # fmt: skip


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill_in(grid: Workflow, log: str, how: str, moments: random.Random, started: list[subprocess.Popen[str]]) -> None:
    """Start the grid and kill it at a random moment of the job that writes `log`, then remove the lock."""
    file = grid.folder / "logs" / RUN / f"{log}.log"
    before, terminal = size(file), grid.folder / "terminal.txt"
    with terminal.open("w") as output:
        process = grid.start(TARGET, stdout=output)
    started.append(process)
    deadline = time.monotonic() + 300
    while size(file) == before:
        assert process.poll() is None, terminal.read_text()
        assert time.monotonic() < deadline, terminal.read_text()
        time.sleep(0.005)
    time.sleep(moments.uniform(0, 0.3))
    assert process.poll() is None, "it came to its end before it could be killed"
    if how == "alone":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code, text = grid.run("--unlock")
    assert code == 0, text


@pytest.mark.slow
@pytest.mark.fault(
    "kill -9 of snakemake", "three times with its job, twice alone: the job goes on beside its successor", SAME
)
def test_the_grid_survives(
    grid: Workflow, whole: Pipeline, started: list[subprocess.Popen[str]], record_property: Record
) -> None:
    moments = random.Random(0)
    disturbed = Pipeline(grid.folder, grid.config)
    seen: dict[Path, bytes] = {}
    for log, how in KILLS:
        kill_in(grid, log, how, moments, started)
        assert {path: path.read_bytes() for path in seen} == seen, "something finished is gone"
        seen |= {path: path.read_bytes() for path in disturbed.finished_blocks()}
        assert all(content == whole.blocks()[path.name] for path, content in seen.items())
    code, output = grid.run(TARGET)
    assert code == 0, output
    assert disturbed.equals(whole)
    assert "Nothing to be done" in grid.run("-n", TARGET)[1], "a late orphan made something look out of date"
    assert disturbed.litter() == []
    for stage in ("pre_pv", "post_pv"):
        metrics = f"results/{RUN}/metrics/{stage}-perplexity.json"
        assert disturbed.read(metrics) == whole.read(metrics)
    rows = read_csv(grid.folder / TARGET)
    assert set(rows.stage) >= {"fp16", "pre_pv", "post_pv", "post_pv_validation", "post_pv_last"}
    record_property("times", len(KILLS))
