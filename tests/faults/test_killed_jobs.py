"""kill -9 of jobs at random moments, over and over: the end is what an undisturbed run leaves, nothing is lost."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import BLOCKS, Fresh
from tests.faults.pipeline import RUN, Arguments, Pipeline
from tests.reliability import SAME

Record = Callable[[str, Any], None]


def killed_at_random(
    pipeline: Pipeline, job: Arguments, kills: int, seconds: float, look: Callable[[], None], done: Callable[[], None]
) -> None:
    """Start `job` again and again; kill it at a random moment of the `seconds` it computes, until `kills` have hit it.

    look: called after each kill. done: called whenever the job came to its end; it must clear away what the job made.
    """
    moments = random.Random(f"{job.script} {kills}")
    hits = 0
    while hits < kills:
        running = pipeline.start(job)
        running.wait_for_work()
        time.sleep(moments.uniform(0, seconds))
        if running.kill():
            hits += 1
            look()
        else:
            assert running.finish()[0] == 0, running.finish()[1]
            done()
    code, output = pipeline.run(job)
    assert code == 0, output
    done()


def seconds_of(pipeline: Pipeline, job: Arguments) -> float:
    """How long an undisturbed job computes on this machine, now."""
    running = pipeline.start(job)
    running.wait_for_work()
    began = time.monotonic()
    code, output = running.finish()
    assert code == 0, output
    return time.monotonic() - began


@pytest.mark.fault("kill -9 of a job", "quantisation of six blocks, at random moments", SAME)
def test_quantisation(whole: Pipeline, fresh: Fresh, record_property: Record) -> None:
    pipeline, kills = fresh(), 20
    seen: dict[Path, int] = {}
    counts: set[int] = set()

    def look() -> None:
        stamps = pipeline.finished_blocks()
        counts.add(len(stamps))
        for path in stamps:
            assert path.read_bytes() == whole.blocks()[path.name]
        assert {path: stamps.get(path) for path in seen} == seen, "a finished block was lost or made again"
        seen.update(stamps)

    def done() -> None:
        look()
        assert pipeline.blocks() == whole.blocks()
        pipeline.make(pipeline.quantized())
        assert pipeline.read(f"results/{RUN}/quantized.json") == whole.read(f"results/{RUN}/quantized.json")
        assert pipeline.litter() == []
        shutil.rmtree(pipeline.run_folder)
        seen.clear()

    seconds = seconds_of(fresh(name="timed"), whole.quantize())
    killed_at_random(pipeline, pipeline.quantize(), kills, 0.6 * seconds, look, done)
    assert counts - {0, BLOCKS}, "no kill came in the middle of the work"
    record_property("times", kills)


@pytest.mark.fault("kill -9 of a job", "PV-tuning of 20 steps that saves each, at random moments", SAME)
def test_pv_tuning(whole: Pipeline, fresh: Fresh, record_property: Record) -> None:
    pipeline, kills = fresh(whole), 20
    folder = pipeline.run_folder / "pv"
    shutil.rmtree(folder)
    steps: list[int] = [0]

    def newest() -> int:
        """The step to go on from; a state whose manifest is there must be whole."""
        states = [path.parent for path in folder.glob("resume/step-*/manifest.json")]
        for state in states:
            files = json.loads((state / "manifest.json").read_text())["files"].values()
            assert all((state / name).is_file() for name, _ in files)
        return max((int(state.name.split("-")[1]) for state in states), default=0)

    def look() -> None:
        if not (folder / "result.json").exists():
            assert newest() >= steps[-1], "steps that had been saved are lost"
        steps.append(newest())

    def done() -> None:
        assert pipeline.tuned() == whole.tuned()
        for name in ("result.json", "manifest.json"):
            assert pipeline.read(f"results/{RUN}/pv/{name}") == whole.read(f"results/{RUN}/pv/{name}")
        assert pipeline.litter() == []
        shutil.rmtree(folder)
        steps.append(0)

    timed = fresh(whole, name="timed")
    shutil.rmtree(timed.run_folder / "pv")
    seconds = seconds_of(timed, whole.pv_tune())
    killed_at_random(pipeline, pipeline.pv_tune(), kills, 0.6 * seconds, look, done)
    assert len(set(steps)) > 3, "no kill came in the middle of the work"
    record_property("times", kills)


@pytest.mark.parametrize("stage", ["pre_pv", "post_pv"])
@pytest.mark.fault("kill -9 of a job", "perplexity of a quantised and of a tuned model, at random moments", SAME)
def test_perplexity(whole: Pipeline, fresh: Fresh, record_property: Record, stage: str) -> None:
    pipeline, kills = fresh(whole), 8
    metrics = f"results/{RUN}/metrics/{stage}-perplexity.json"
    kept = {path: path.stat().st_mtime_ns for path in pipeline.run_folder.glob("*/*.safetensors")}

    def look() -> None:
        assert not (pipeline.folder / metrics).exists() or pipeline.read(metrics) == whole.read(metrics)
        (pipeline.folder / metrics).unlink(missing_ok=True)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept

    def done() -> None:
        assert pipeline.read(metrics) == whole.read(metrics)
        look()

    seconds = seconds_of(pipeline, pipeline.perplexity(stage))
    done()
    killed_at_random(pipeline, pipeline.perplexity(stage), kills, 0.9 * seconds, look, done)
    record_property("times", kills)


@pytest.mark.parametrize("job", ["quantize", "pv_tune", "perplexity"])
@pytest.mark.fault("two writers at once", "the same job twice, in the same folder, at the same time", SAME)
def test_two_writers(whole: Pipeline, fresh: Fresh, job: str) -> None:
    pipeline = fresh(whole)
    arguments = pipeline.without(job)
    first = pipeline.start(arguments)
    time.sleep(random.Random(job).uniform(0, 0.3))
    second = pipeline.start(arguments)
    for writer in (first, second):
        code, output = writer.finish()
        assert code == 0, output
    assert pipeline.equals(whole)
    assert pipeline.litter() == []
