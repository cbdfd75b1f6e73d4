"""Jobs that a signal ends, as the out-of-memory killer or a crash in a native library does: Snakemake tells of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oaem.runtime.jobs import sudden_end
from tests.faults.pipeline import RUN, Pipeline, process_of
from tests.reliability import MESSAGE, SAME
from tests.workflow.conftest import Workflow

# Two jobs that need nothing of each other, what is sent to each, and how its end is told.
DEATHS = {
    f"logs/{RUN}/blocks-0000-0006.log": (signal.SIGSEGV, "Segmentation fault; the log shows where"),
    "logs/models/tiny/fp16-perplexity.log": (signal.SIGKILL, "killed"),
}
TARGETS = (f"results/{RUN}/metrics/pre_pv-perplexity.json", "results/models/tiny/metrics/fp16-perplexity.json")


@pytest.mark.slow
@pytest.mark.fault(
    "out of memory",
    "the system kills a job under snakemake, and a native library crashes another",
    f"{MESSAGE}; then {SAME}",
)
def test_snakemake_tells_of_jobs_that_could_not(
    grid: Workflow, whole: Pipeline, started: list[subprocess.Popen[str]], record_property: Callable[[str, int], None]
) -> None:
    disturbed = Pipeline(grid.folder, grid.config)
    running = grid.start(*TARGETS)
    started.append(running)
    for log, (deadly, _) in DEATHS.items():
        job = process_of(grid.folder, log, running)
        while deadly == signal.SIGSEGV and not disturbed.finished_blocks():
            assert running.poll() is None
            time.sleep(0.005)
        os.kill(job, deadly)
    output, _ = running.communicate(timeout=300)
    assert running.returncode == 1, output
    for log, (_, told) in DEATHS.items():
        assert output.count(f"{log}: the job was ended in the middle of its work and could not say why ({told})") == 1
    assert output.count("Most often memory ran out: run fewer jobs at once") == len(DEATHS)
    assert "Traceback" not in output and "unexpected" not in output, output
    kept = disturbed.finished_blocks()
    assert 0 < len(kept) < 6
    assert "in quantize_range" in (grid.folder / next(iter(DEATHS))).read_text(), "the log does not show the place"

    code, output = grid.run(*TARGETS)
    assert code == 0, output
    assert "could not say why" not in output
    assert {path: disturbed.finished_blocks()[path] for path in kept} == kept
    assert disturbed.blocks() == whole.blocks()
    assert disturbed.read(TARGETS[0]) == whole.read(TARGETS[0])
    record_property("times", len(DEATHS))


BODIES = {
    "ends well": ("pass", None),
    "says what was wrong": ("raise UserError('the disk is blue')", None),
    "fails unexpectedly": ("1 / 0", None),
    "is interrupted": ("raise KeyboardInterrupt", None),
    "is aborted": ("os.abort()", "Aborted; the log shows where"),
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", "Segmentation fault; the log shows where"),
    "reads beyond a file": ("os.kill(os.getpid(), signal.SIGBUS)", "Bus error; the log shows where"),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", "killed"),
    "is ended": ("os.kill(os.getpid(), signal.SIGTERM)", "killed"),
}


@pytest.mark.parametrize("how", BODIES)
def test_only_a_log_that_breaks_off_is_told_of(tmp_path: Path, how: str) -> None:
    body, told = BODIES[how]
    log = tmp_path / "job.log"
    log.write_text("2026-01-01 DEBUG the job begins: process 1 on here\nand breaks off\n")
    program = f"""
import os, signal
from types import SimpleNamespace
from oaem.errors import UserError
from oaem.runtime.jobs import run_job
def work(snakemake):
    {body}
run_job(SimpleNamespace(log=[{str(log)!r}]), work)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    if told is None:
        assert done.returncode == (0 if how == "ends well" else 1)
        assert sudden_end(log) is None
    else:
        assert done.returncode < 0
        message = sudden_end(log)
        assert message is not None and f"{log}: " in message and f"({told})" in message


def test_an_end_is_that_of_the_same_process(tmp_path: Path) -> None:
    """A job that outlived a killed snakemake may end in the log of its successor."""
    log = tmp_path / "job.log"
    assert sudden_end(log) is None, "no log: the job never began"
    log.write_text("")
    assert sudden_end(log) is None
    log.write_text(
        "x the job begins: process 1 on a\nx the job begins: process 12 on a\nx the job ends: process 1 on a\n"
    )
    assert sudden_end(log) is not None
    log.write_text(log.read_text() + "x the job ends: process 12 on a\n")
    assert sudden_end(log) is None
