"""The tiny grid, prepared as far as no cluster is needed, and the cluster to submit the rest to."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.pipeline import RUN as PATH
from tests.faults.pipeline import Pipeline
from tests.slurm.cluster import UnavailableError, cluster, command
from tests.workflow.conftest import Workflow, tiny_config, write_corpus

if TYPE_CHECKING:
    from tests.shared import MadeOnce

RUN = f"results/{PATH}"
RANGE = f"{RUN}/blocks/range-0000-0003.json"
# The profile as it is; only its patience, and the executor's (impatient.py), is meant for jobs of hours.
SUBMIT = ["--profile", "slurm", "--cores", "8", "--slurm-init-seconds-before-status-checks", "1"]
SUBMIT += ["--seconds-between-status-checks", "1"]
LIMIT_SECONDS = 1200


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """A SLURM of our own on this machine; skips with the reason where there can be none."""
    try:
        with cluster():
            yield
    except UnavailableError as error:
        pytest.skip(f"no SLURM here: {error}")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, made_once: MadeOnce) -> Pipeline:
    """Model and tokens of one run of three blocks that take a second or more each: time to catch a job between two."""
    config = tiny_config(tiny_llama, made_once("corpus", write_corpus))
    del config["evaluation"]["perplexity"]["near"]
    config["quantization"]["blocks_per_job"] = "all"
    config["quantization"]["codebooks"] = {"steps": 300, "lr": 1e-3, "relative_tolerance": 0.0}
    config["grid"][0]["init"] = ["oaem"]
    pipeline = Pipeline(tmp_path_factory.mktemp("inputs"), config)
    pipeline.make(pipeline.model(), pipeline.tokens("calibration-s42"), pipeline.tokens("eval-far"))
    return pipeline


@pytest.fixture(scope="session")
def local(inputs: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The run, made on this machine without a cluster and without Snakemake."""
    folder = tmp_path_factory.mktemp("local") / "work"
    made = Workflow(inputs.folder, inputs.values).copied(folder)
    pipeline = Pipeline(folder, made.config)
    pipeline.make(pipeline.quantize(), pipeline.quantized())
    return made


@pytest.fixture
def unquantised(inputs: Pipeline, tmp_path: Path) -> Workflow:
    """The same with model and tokens made and no block quantised yet."""
    return Workflow(inputs.folder, inputs.values).copied(tmp_path / "work")


class Submission:
    """A snakemake that submits to the cluster, and the jobs it has submitted."""

    def __init__(self, workflow: Workflow, *arguments: str) -> None:
        self.folder = workflow.folder
        self.process = workflow.start(*SUBMIT, *arguments, module="tests.slurm.impatient")

    def jobs(self, rule: str) -> list[dict[str, str]]:
        """What SLURM knows of the jobs of `rule`, oldest first."""
        lines = command("scontrol", "--details", "--oneliner", "show", "job").stdout.splitlines()
        jobs = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
        ours = [job for job in jobs if job.get("WorkDir") == str(self.folder) and f"/rule_{rule}/" in job["StdOut"]]
        return sorted(ours, key=lambda job: int(job["JobId"]))

    def finish(self) -> tuple[int, str]:
        """Wait for the end; returns exit code and output."""
        output, _ = self.process.communicate(timeout=LIMIT_SECONDS)
        return self.process.returncode, output


@pytest.fixture(scope="session")
def submit(slurm: None) -> Callable[..., Any]:
    """submit(workflow, *arguments): a context in which snakemake submits to the cluster; ended with its jobs."""

    @contextmanager
    def run(workflow: Workflow, *arguments: str) -> Iterator[Submission]:
        submission = Submission(workflow, *arguments)
        try:
            yield submission
        finally:
            if submission.process.poll() is None:
                # SIGINT cancels the jobs; snakemake waits for ever if it cannot.
                os.killpg(submission.process.pid, signal.SIGINT)
                try:
                    print(submission.process.communicate(timeout=30)[0])
                except subprocess.TimeoutExpired:
                    os.killpg(submission.process.pid, signal.SIGKILL)
                    print(submission.process.communicate()[0])

    return run
