"""The workflow on a real SLURM, through the profile that users take."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from oaem.measurements.table import read_csv
from tests.faults.pipeline import Pipeline, process_of
from tests.slurm.cluster import command, wait_until
from tests.slurm.conftest import RANGE, RUN, Submission
from tests.workflow.conftest import Workflow

# The hanging job is begun first and looked at last: its minute passes while the other tests run.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hanging")]
Submit = Callable[..., Any]


def blocks_done(workflow: Workflow) -> list[Path]:
    """The artefacts whose report, which is written after them, is there."""
    made = sorted((workflow.folder / RUN / "blocks").glob("*.safetensors"))
    return [path for path in made if path.with_suffix(".json").exists()]


def wait_for_first_block(workflow: Workflow, submission: Submission) -> str:
    """Wait until the job has stored a block and is at the next; returns the job's number."""

    def there() -> bool:
        assert submission.process.poll() is None, submission.process.communicate()[0]
        return bool(blocks_done(workflow))

    wait_until(there, 300, "no block is done")
    return submission.jobs("quantize_blocks")[-1]["JobId"]


def stamps(paths: list[Path]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in paths}


@dataclass
class Hanging:
    """A run whose job hangs in the middle of its work until SLURM ends it, and the blocks that were done by then."""

    workflow: Workflow
    submission: Submission
    limit: str
    kept: dict[Path, int]


@pytest.fixture(scope="module")
def hanging(submit: Submit, inputs: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hanging]:
    workflow = Workflow(inputs.folder, inputs.values).copied(tmp_path_factory.mktemp("hanging") / "work")
    with submit(workflow, RANGE) as submission:
        job = wait_for_first_block(workflow, submission)
        command("scancel", "--signal=STOP", job)
        limit = submission.jobs("quantize_blocks")[-1]["TimeLimit"]
        command("scontrol", "update", f"JobId={job}", "TimeLimit=1")  # SLURM's shortest limit, a minute
        yield Hanging(workflow, submission, limit, stamps(blocks_done(workflow)))


def test_the_tiny_grid_gives_the_same_bytes_as_on_one_machine(submit: Submit, local: Workflow, tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, local.config)
    with submit(workflow, "results/metrics.csv") as submission:
        code, output = submission.finish()
    assert code == 0, output
    assert len(workflow.blocks()) == 3
    assert workflow.blocks() == local.blocks()
    metrics = read_csv(workflow.folder / "results/metrics.csv")
    assert set(metrics[metrics.metric == "perplexity"].stage) == {"fp16", "pre_pv"}
    for rule in ("model", "tokens", "quantize_blocks", "quantized", "perplexity"):
        jobs = submission.jobs(rule)
        assert jobs, f"{rule} was not submitted"
        assert {job["JobState"] for job in jobs} == {"COMPLETED"}
        assert {job["Partition"] for job in jobs} == {"gpu"}
        assert {job["JOB_GRES"] for job in jobs} == {"(null)"}, "a grid for the CPU asks for GPUs"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the job is to fail for want of a GPU, and there is one here")
def test_gpu_jobs_wait_for_a_gpu_and_a_failing_one_is_reported_with_its_log(
    submit: Submit, unquantised: Workflow
) -> None:
    unquantised.config = {**copy.deepcopy(unquantised.config), "device": "cuda"}
    shutil.rmtree(unquantised.folder / "results/tokens")
    taken = command(
        "sbatch", "--parsable", "--gpus=2", "--mem=100", "--output=/dev/null", "--wrap=sleep 300"
    ).stdout.strip()
    try:
        with submit(unquantised, "--retries", "0", RANGE) as submission:
            wait_until(lambda: bool(submission.jobs("quantize_blocks")), 300, "no GPU job is submitted")

            def reason() -> str:
                (job,) = submission.jobs("quantize_blocks")
                assert job["JobState"] == "PENDING", "both GPUs are taken, and yet a GPU job starts"
                return job["Reason"]

            wait_until(lambda: reason() == "Resources", 30, "the scheduler does not see that the GPUs are taken")
            (tokens,) = submission.jobs("tokens")
            assert tokens["JobState"] == "COMPLETED", "a CPU job has waited for a GPU"
            assert tokens["JOB_GRES"] == "(null)"
            command("scancel", taken)
            code, output = submission.finish()
    finally:
        command("scancel", taken)
    (job,) = submission.jobs("quantize_blocks")
    assert job["JobState"] == "FAILED"
    assert (job["TresPerJob"], job["JOB_GRES"]) == ("gres:gpu:1", "gpu:1")
    # This machine has no GPU, so the job ends in the one message that says so, and snakemake shows it.
    assert code != 0
    assert "PyTorch sees no GPU" in output
    assert f"logs/{RUN.removeprefix('results/')}/blocks-0000-0003.log" in output
    assert f"SLURM-job '{job['JobId']}' failed" in output


def test_a_cancelled_job_is_submitted_again_and_resumes(submit: Submit, local: Workflow, unquantised: Workflow) -> None:
    with submit(unquantised, RANGE) as submission:
        job = wait_for_first_block(unquantised, submission)
        command("scancel", job)
        kept = stamps(blocks_done(unquantised))
        code, output = submission.finish()
    assert code == 0, output
    assert [job["JobState"] for job in submission.jobs("quantize_blocks")] == ["CANCELLED", "COMPLETED"]
    assert_resumed(unquantised, local, kept)


def test_a_job_that_is_killed_on_its_node_is_told_of(submit: Submit, unquantised: Workflow) -> None:
    log = f"logs/{RUN.removeprefix('results/')}/blocks-0000-0003.log"
    with submit(unquantised, "--retries", "0", RANGE) as submission:
        os.kill(process_of(unquantised.folder, log, submission.process), signal.SIGKILL)
        code, output = submission.finish()
    assert code != 0
    assert output.count(f"{log}: the job was ended in the middle of its work and could not say why (killed)") == 1
    assert "Traceback" not in output


def test_a_tuning_of_two_ranks_asks_for_two_gpus_of_one_node(submit: Submit, local: Workflow, tmp_path: Path) -> None:
    """The GPUs are fake, so the ranks compute on the CPU."""
    workflow = local.copied(tmp_path / "work")
    text = {"corpus": "train", "protocol": "concatenated", "window": 32, "windows": 8}
    workflow.config["pv"] = {
        "text": text, "validation_text": {**text, "windows": 2}, "test": "far", "epochs": 1, "batch_size": 2, "gpus": 2,
        "gradient_checkpointing": False,
    }  # fmt: skip
    pipeline, target = Pipeline(workflow.folder, workflow.config), f"{RUN}/pv/manifest.json"
    pipeline.make(*(pipeline.tokens(name) for name in ("pv-s42", "pv-validation")))
    with submit(workflow, target, "--set-resources", "pv_tune:gpu=2") as submission:
        code, output = submission.finish()
    assert code == 0, output
    (job,) = submission.jobs("pv_tune")
    assert (job["JobState"], job["TresPerJob"], job["JOB_GRES"]) == ("COMPLETED", "gres:gpu:2", "gpu:2")
    assert (job["NumNodes"], job["CPUs/Task"]) == ("1", "2")
    log = (workflow.folder / f"logs/{RUN.removeprefix('results/')}/pv_tune.log").read_text()
    assert set(re.findall(r"rank (\d), process \d+, on cpu", log)) == {"0", "1"}
    assert len(json.loads((workflow.folder / target).read_text(encoding="utf-8"))["losses"]) == 4
    assert len(list((workflow.folder / RUN / "pv").glob("*.safetensors"))) == 3


def test_a_job_over_its_time_limit_is_submitted_again_and_resumes(hanging: Hanging, local: Workflow) -> None:
    code, output = hanging.submission.finish()
    assert code == 0, output
    assert hanging.limit == "02:00:00", "not what the rule asks for"
    assert [job["JobState"] for job in hanging.submission.jobs("quantize_blocks")] == ["TIMEOUT", "COMPLETED"]
    assert_resumed(hanging.workflow, local, hanging.kept)


def assert_resumed(workflow: Workflow, local: Workflow, kept: dict[Path, int]) -> None:
    """The finished blocks were kept, the others were made, and all have the bytes of an undisturbed run."""
    assert 0 < len(kept) < 3, "the job was not in the middle of its work"
    assert stamps(list(kept)) == kept, "a finished block was computed again"
    assert workflow.blocks() == local.blocks()
    assert len(json.loads((workflow.folder / RANGE).read_text(encoding="utf-8"))["blocks"]) == 3
