"""What comes from the unquantised model, through the real workflow: parallel jobs, one stream, and what reruns."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import yaml

from oaem.config.schema import parse
from oaem.planning import layout
from tests.faults.pipeline import Pipeline
from tests.workflow.conftest import ROOT, Workflow, jobs_of, snakemake


@pytest.fixture
def original(finished: Workflow, tmp_path: Path) -> Workflow:
    """The finished grid with its runs to be made anew on original inputs, a block a job."""
    workflow = finished.copied(tmp_path / "original").without_runs()
    workflow.config["quantization"] |= {"inputs": "original", "blocks_per_job": 1}
    return workflow


def test_parallel_blocks_give_the_bytes_of_one_job(finished: Workflow, original: Workflow, tmp_path: Path) -> None:
    targets = [layout.quantized(run.path) for run in parse(original.config).runs()]
    code, output = original.run("-n", *targets)
    assert code == 0, output
    counts = {rule: jobs_of(output, rule) for rule in ("calibration_stream", "quantize_blocks", "tokens", "model")}
    assert counts == {"calibration_stream": 1, "quantize_blocks": 6, "tokens": 0, "model": 0}
    code, output = original.run("--cores", "3", *targets, fresh=("calibration_stream",))
    assert code == 0, output

    config = copy.deepcopy(original.config)
    whole = Pipeline(original.copied(tmp_path / "whole").without_runs().folder, config)
    shutil.rmtree(whole.folder / "results/models/tiny/activations")
    whole.make(whole.stream(), *(whole.quantize(0, 3, init) for init in ("greedy", "oaem")))
    blocks = original.blocks()
    assert len(blocks) == 6
    assert blocks == Workflow(whole.folder, config).blocks()

    # The same path, other settings: never mixed, told by the fingerprint and planned anew.
    assert blocks.keys() == finished.blocks().keys() and blocks != finished.blocks()
    shutil.rmtree(original.folder / "results/models/tiny/activations")
    code, output = original.run("-n", *targets)
    assert code == 0 and "Nothing to be done" in output, "a removed stream must not rerun what was made of it"
    original.config["quantization"] |= {"inputs": "sequential"}
    code, output = original.run("-n", *targets)
    assert code == 0, output
    assert jobs_of(output, "quantize_blocks") == 6
    assert jobs_of(output, "calibration_stream") == 0


def test_sequential_runs_read_the_stream_for_their_targets(finished: Workflow, tmp_path: Path) -> None:
    """In a chain of jobs, to the bytes of one job; and the paper's targets are planned anew without the stream."""
    workflow = finished.copied(tmp_path / "targets").without_runs()
    workflow.config["quantization"]["block_tuning"] |= {"targets": "unquantized_model"}
    runs = [layout.quantized(run.path) for run in parse(workflow.config).runs()]
    code, output = workflow.run("-n", *runs)
    assert code == 0, output
    assert (jobs_of(output, "calibration_stream"), jobs_of(output, "quantize_blocks")) == (1, 4)
    code, output = workflow.run(*runs)
    assert code == 0, output
    whole = Pipeline(workflow.copied(tmp_path / "whole").without_runs().folder, workflow.config)
    whole.make(*(whole.quantize(0, 3, init) for init in ("greedy", "oaem")))
    blocks = workflow.blocks()
    assert len(blocks) == 6
    assert blocks == Workflow(whole.folder, workflow.config).blocks()
    assert blocks.keys() == finished.blocks().keys()
    assert all(content != finished.blocks()[path] for path, content in blocks.items())
    workflow.config["quantization"]["block_tuning"].pop("targets")
    code, output = workflow.run("-n", *runs)
    assert code == 0, output
    assert (jobs_of(output, "calibration_stream"), jobs_of(output, "quantize_blocks")) == (0, 4)


def test_changed_inputs_replace_every_block(finished: Workflow, original: Workflow, tmp_path: Path) -> None:
    """Blocks of the one kind lie where those of the other belong: none is taken for one."""
    config = copy.deepcopy(original.config)
    mixed = Pipeline(finished.copied(tmp_path / "mixed").folder, config)
    before = mixed.finished_blocks()
    mixed.make(mixed.stream(), mixed.quantize(2, 3), mixed.quantize(0, 2))
    alone = Pipeline(original.folder, config)
    alone.make(alone.stream(), alone.quantize(0, 3))
    assert mixed.blocks() == alone.blocks()
    assert all(mixed.finished_blocks()[path] > stamp for path, stamp in before.items())


def test_eighty_blocks_of_fourteen_runs_are_planned(tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "config/paper.yaml").read_text(encoding="utf-8"))
    values["quantization"]["inputs"] = "original"
    for model in values["models"].values():
        model["blocks"] = 80
    for size, jobs in ((1, 80), (8, 10)):
        values["quantization"]["blocks_per_job"] = size
        (tmp_path / "large.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        places = ("--directory", str(tmp_path), "--configfile", str(tmp_path / "large.yaml"))
        code, output = snakemake("-n", "--cores", "1", *places, "--", "results/metrics.csv")
        assert code == 0, output
        assert jobs_of(output, "quantize_blocks") == 14 * jobs
        assert jobs_of(output, "calibration_stream") == 3
