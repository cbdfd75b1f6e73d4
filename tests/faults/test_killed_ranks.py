"""PV-tuning by two ranks of which one is killed: the job says so at once, and the next one goes on."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Fresh
from tests.faults.pipeline import Job, Pipeline
from tests.reliability import MESSAGE, SAME


def of_two(pipeline: Pipeline) -> Pipeline:
    pipeline.values["pv"] |= {"gpus": 2, "epochs": 2, "save_every": 2}
    return pipeline


def ranks_at_work(pipeline: Pipeline, job: Job) -> list[int]:
    """The processes of the two ranks, as soon as they have saved a state that `job` did not find."""
    before = states(pipeline)
    deadline = time.monotonic() + 120
    while not states(pipeline) - before:
        assert job.running, job.finish()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    found = re.findall(r"rank (\d), process (\d+),", job.log.read_bytes()[job.logged :].decode())
    return [int(process) for _, process in sorted(found)]


def states(pipeline: Pipeline) -> set[Path]:
    return {path.parent for path in (pipeline.run_folder / "pv/resume").glob("step-*/manifest.json")}


@pytest.mark.slow
@pytest.mark.fault("kill -9 of a job", "one of two ranks that tune together", f"{MESSAGE}; then {SAME}")
def test_ranks(whole: Pipeline, fresh: Fresh, record_property: Callable[[str, Any], None]) -> None:
    undisturbed, pipeline = of_two(fresh(whole, "undisturbed")), of_two(fresh(whole, "disturbed"))
    undisturbed.make(undisturbed.without("pv_tune"))
    arguments = pipeline.without("pv_tune")

    job = pipeline.start(arguments)
    os.kill(ranks_at_work(pipeline, job)[1], signal.SIGKILL)
    began = time.monotonic()
    code, output = job.finish()
    assert time.monotonic() - began < 30, "it did not notice at once"
    assert code == 1
    assert output.count("rank 1 of 2 was killed (SIGKILL), and the others were stopped") == 1
    assert output.count("run the same command again") == 1
    assert not [word for word in ("Traceback", "unexpected", "Error", "torch") if word in output], output
    kept = max(int(path.name.split("-")[1]) for path in states(pipeline))

    code, output = pipeline.run(arguments)
    assert code == 0, output
    assert f"going on after step {kept} of 10" in output
    assert pipeline.tuned() == undisturbed.tuned()
    for name in ("result.json", "manifest.json"):
        path = f"{pipeline.run_folder.relative_to(pipeline.folder)}/pv/{name}"
        assert pipeline.read(path) == undisturbed.read(path)
    assert pipeline.litter() == []
    record_property("times", 1)
