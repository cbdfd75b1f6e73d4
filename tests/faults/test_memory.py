"""Memory that runs out in the middle of a job: one message, finished work kept, the same bytes with enough of it."""

from __future__ import annotations

import importlib
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from oaem.runtime.jobs import sudden_end
from tests.faults.conftest import Fresh
from tests.faults.pipeline import Pipeline
from tests.reliability import MESSAGE, SAME

HUGE = 2**50


def too_large_a_tensor() -> None:
    torch.empty(HUGE, dtype=torch.uint8)


def too_large_an_object() -> None:
    bytearray(HUGE)


def too_large_for_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 79.10 GiB.\nMore advice.")


CASES = {
    "a tensor": (too_large_a_tensor, "out of memory: run fewer jobs at once"),
    "an object": (too_large_an_object, "out of memory: run fewer jobs at once"),
    "the GPU": (too_large_for_the_gpu, "the GPU is out of memory: CUDA out of memory. Tried to allocate 20.00 GiB."),
}
# Where in each job: the function or method (module:class, name) in whose n-th call memory runs out.
PLACES = {
    "quantize": ("oaem.calibration.sequential:", "tune_block", 10),
    "pv_tune": ("oaem.pv.optimizer:PVOptimizer", "step", 12),
    "perplexity": ("oaem.evaluation.domains:", "perplexity", 2),
}


def failing(owner: str, name: str, call: int, fail: Callable[[], None]) -> None:
    """Let the `call`-th call of `owner`'s `name` fail as the machine would; for the process of a job."""
    module, _, of_class = owner.partition(":")
    place: Any = importlib.import_module(module)
    place = getattr(place, of_class) if of_class else place
    original, calls = getattr(place, name), iter(range(1, call + 1))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls, 0) == call:
            fail()
        return original(*args, **kwargs)

    setattr(place, name, wrapped)


def with_no_more_memory() -> None:
    """Limit this process to what it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, used))


@pytest.mark.parametrize(
    ("job", "case"),
    [("quantize", "a tensor"), ("quantize", "the GPU"), ("pv_tune", "a tensor"), ("perplexity", "an object")],
)
@pytest.mark.fault("out of memory", "an allocation in the middle of a job fails", f"{MESSAGE}; then {SAME}")
def test_an_allocation_fails(whole: Pipeline, fresh: Fresh, job: str, case: str) -> None:
    pipeline = fresh(whole)
    arguments = pipeline.without(job)
    fail, message = CASES[case]
    code, output = pipeline.run(arguments, partial(failing, *PLACES[job], fail))
    assert code == 1, output
    assert output.count(message) == 1
    assert "run the same command again" in output
    assert "Traceback" not in output and "unexpected" not in output, output
    kept = pipeline.finished_blocks()
    assert kept
    if job == "pv_tune":
        assert list(pipeline.run_folder.glob("pv/resume/step-*/manifest.json")), "no step is left to go on from"
    pipeline.make(arguments)
    assert {path: pipeline.finished_blocks()[path] for path in kept} == kept
    assert pipeline.equals(whole)


@pytest.mark.parametrize("job", PLACES)
@pytest.mark.fault("out of memory", "the system grants a job no more memory than it has", f"{MESSAGE}; then {SAME}")
def test_a_limit_of_the_system(whole: Pipeline, fresh: Fresh, job: str) -> None:
    pipeline = fresh(whole)
    arguments = pipeline.without(job)
    code, output = pipeline.run(arguments, with_no_more_memory)
    if code < 0:  # a native library that does not look whether it got its memory: which, depends on the processor
        told = sudden_end(pipeline.folder / arguments.log)
        assert told is not None and "memory ran out: run fewer jobs at once" in told
    else:
        assert code == 1, output
        assert "out of memory: run fewer jobs at once" in output
    assert "Traceback" not in output and "unexpected" not in output, output
    pipeline.make(arguments)
    assert pipeline.equals(whole)
