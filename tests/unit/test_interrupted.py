"""benchmarks/interrupted.py with a stand-in for Snakemake: when it kills, how it goes on, and what it calls different.

That the workflow itself ends with the same bytes is in tests/workflow (test_pipeline.py, test_pv_stage.py).
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks/interrupted.py"))
# Goes on where it was, to the second block, then to the third step, then to the end: at each it waits to be killed.
STAND_IN = """
import pathlib, sys, time
place, start = pathlib.Path(sys.argv[1]), int(sys.argv[2])
made = [place / f"blocks/{block:04d}.json" for block in range(5)]
made += [place / f"pv/resume/step-{step:06d}-f/manifest.json" for step in range(1, 6)]
for path in made[: (2, 8, 10)[start]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
if start < 2:
    time.sleep(600)
"""


class StandIn(SCRIPT["Attempt"]):  # type: ignore[misc]
    """The same, without Snakemake."""

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        log = self.folder / "started.txt"
        starts = log.read_text().count("incomplete") if log.exists() else 0
        with log.open("a") as started:
            print(*more, file=started)
        stand_in = [sys.executable, "-c", STAND_IN, str(self.place), str(starts)]
        return subprocess.Popen(["true"] if "--unlock" in more else stand_in, start_new_session=True)


def test_it_is_killed_when_asked_and_goes_on(tmp_path: Path) -> None:
    kills = SCRIPT["kill_on_the_way"](StandIn(tmp_path, "runs/x", ()), [2], [3])
    assert kills == [{"blocks": 2, "step": 0}, {"blocks": 5, "step": 3}]
    started = (tmp_path / "started.txt").read_text().split()
    assert started == ["--rerun-incomplete", "--unlock"] * 2 + ["--rerun-incomplete"]


def test_a_run_that_ends_too_soon_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"ended before it could be killed \(2 kills done\)"):
        SCRIPT["kill_on_the_way"](StandIn(tmp_path, "runs/x", ()), [2], [3, 9])


def test_what_differs_is_seen(tmp_path: Path) -> None:
    one, other = (StandIn(tmp_path / name, "runs/x", ()) for name in ("one", "other"))

    def leave(attempt: Any, loss: float, seconds: float, state: bytes) -> None:
        rows = [{"metric": "seconds", "value": seconds}, {"metric": "perplexity", "value": 20.0}]
        report = {"loss": loss, "seconds": {"total": seconds}, "metrics": rows, "provenance": {"written": seconds}}
        attempt.place.mkdir(parents=True, exist_ok=True)
        (attempt.place / "report.json").write_text(json.dumps(report))
        (attempt.place / "state.safetensors").write_bytes(state)

    leave(one, 0.5, 1.0, b"bits")
    leave(other, 0.5, 2.0, b"bits")
    assert one.files() == other.files(), "times are of the moment"
    leave(other, 0.6, 1.0, b"bitz")
    assert {name for name, found in one.files().items() if found != other.files()[name]} == set(one.files())
