"""A job that outlives its Snakemake, and the job that the next Snakemake starts for the same work."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.conftest import BLOCKS, Fresh
from tests.faults.pipeline import Arguments, Job, Pipeline
from tests.reliability import SAME

# What a job logs once for each piece of its work.
WORK = {"quantize": r"block \d+ \S+: relative error", "pv_tune": r"PV-tuning, epoch \d+ of"}
PIECES = {"quantize": BLOCKS * 7, "pv_tune": 4}
WAITS = "is at work here; waiting for it to end"


def pieces(pipeline: Pipeline, arguments: Arguments, job: str, begin: int) -> Counter[str]:
    """How often each piece of work was done, by the log from byte `begin` on."""
    text = (pipeline.folder / arguments.log).read_bytes()[begin:].decode()
    return Counter(re.findall(WORK[job], text))


def wait_until_it_waits(job: Job) -> None:
    deadline = time.monotonic() + 60
    while not (job.terminal.exists() and WAITS in job.terminal.read_text()):
        assert job.running, job.finish()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("job", WORK)
@pytest.mark.fault("two writers at once", "a job and its successor, which waits: the work is done once", SAME)
def test_an_orphan_and_its_successor(whole: Pipeline, fresh: Fresh, job: str) -> None:
    pipeline = fresh(whole)
    arguments = pipeline.without(job)
    manifest = pipeline.folder / arguments.output["manifest"]
    manifest.unlink(missing_ok=True)
    orphan = pipeline.start(arguments)
    orphan.wait_for_work()
    successor = pipeline.start(arguments)
    wait_until_it_waits(successor)
    for each in (orphan, successor):
        code, output = each.finish()
        assert code == 0, output
    assert pipeline.equals(whole)
    done = pieces(pipeline, arguments, job, 0)
    assert len(done) == PIECES[job]
    assert set(done.values()) == {1}, "something was done twice"
    assert pipeline.litter() == []


@pytest.mark.parametrize("job", WORK)
@pytest.mark.fault("kill -9 of a job", "while its successor waits for it, which goes on at once", SAME)
def test_a_killed_orphan_lets_its_successor_go_on(whole: Pipeline, fresh: Fresh, job: str) -> None:
    pipeline = fresh(whole)
    arguments = pipeline.without(job)
    orphan = pipeline.start(arguments)
    orphan.wait_for_work()
    successor = pipeline.start(arguments)
    wait_until_it_waits(successor)
    assert orphan.kill()
    code, output = successor.finish()
    assert code == 0, output
    assert pipeline.equals(whole)
    assert pipeline.litter() == []


@pytest.mark.fault("two writers at once", "every job once more when all is done: its outputs keep their time", SAME)
def test_a_late_orphan_touches_nothing(whole: Pipeline, fresh: Fresh) -> None:
    """A job that only now comes to its end must not make Snakemake repeat what was made of its outputs."""
    pipeline = fresh(whole)
    jobs = [
        pipeline.model(), pipeline.tokens("eval-far"), pipeline.quantize(), pipeline.quantized(), pipeline.pv_tune(),
        pipeline.perplexity("pre_pv"),
    ]  # fmt: skip
    outputs = [pipeline.folder / path for job in jobs for path in job.output.values()]
    before = {path: stamp(path) for path in outputs}
    pipeline.make(*jobs)
    assert {path: stamp(path) for path in outputs} == before
    assert pipeline.equals(whole)


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns
