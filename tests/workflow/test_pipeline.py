"""The real workflow on tiny random models: every stage, and the same bits however the work was cut or killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from oaem.config.schema import parse
from oaem.evaluation.archive import archive
from oaem.evaluation.metrics import load_metrics
from oaem.measurements.table import read_csv
from oaem.planning import layout
from oaem.presentation.tables.build import build
from tests.faults.pipeline import Pipeline
from tests.workflow.conftest import ROOT, Workflow, jobs_of, tiny_config


def block_files(workflow: Workflow) -> list[Path]:
    return list((workflow.folder / "results").glob("runs/**/blocks/*.safetensors"))


def test_the_tiny_grid_runs_and_then_has_nothing_to_do(finished: Workflow, tmp_path: Path) -> None:
    workflow = finished.copied(tmp_path / "again")
    metrics = read_csv(workflow.folder / "results/metrics.csv")
    perplexities = metrics[metrics.metric == "perplexity"]
    assert set(perplexities.stage) == {"fp16", "pre_pv"}
    assert set(perplexities.dataset) == {"near", "far"}
    assert len(perplexities) == 2 * 3
    assert (perplexities.value > 1).all()
    # The order of domains in the configuration is not alphabetical: each number must belong to its own text.
    read = {(row.dataset, *json.loads(row.protocol)["corpus"]["files"]) for row in perplexities.itertuples()}
    assert read == {("near", "train.jsonl"), ("far", "test.jsonl")}
    table = pd.read_csv(workflow.folder / "results/tables/table1.csv")
    assert len(table) >= 3
    assert (workflow.folder / "results/tables/rho.csv").exists()
    assert (workflow.folder / "results/report.html").stat().st_size > 1000
    assert not list((workflow.folder / "results").glob("runs/**/activations")), "temporary activations stay behind"
    logs = list((workflow.folder / "logs").rglob("*.log"))
    assert any("blocks-" in log.name for log in logs)
    code, output = workflow.run()
    assert code == 0
    assert "Nothing to be done" in output


def test_a_pair_of_runs_is_compared_layer_by_layer(finished: Workflow, tmp_path: Path) -> None:
    """Of a run and its greedy partner; a model with nothing exchanged is the one that was measured, to the bit."""
    workflow = finished.copied(tmp_path / "pair")
    oaem, greedy = sorted((run for run in parse(workflow.config).runs()), key=lambda run: run.init == "greedy")
    folder = workflow.folder / "results" / oaem.path / "metrics"
    code, output = workflow.run("inquire", fresh=("layer_exchange", "error_directions", "error_exchange"))
    assert code == 0, output
    rows = json.loads((folder / "exchange.json").read_text())["metrics"]
    parts = {json.loads(row["protocol"])["exchanged"]["part"] for row in rows}
    assert len(parts) == 1 + 7 + 3
    protocols = [json.loads(row["protocol"]) for row in rows]
    assert all(protocol.pop("exchanged")["from"] in ("greedy", "oaem") for protocol in protocols)
    assert len(rows) == len(parts) * 2 * 2
    for run in (oaem, greedy):
        measured = json.loads((workflow.folder / "results" / run.path / "metrics/pre_pv-perplexity.json").read_text())
        own = {row["dataset"]: row["value"] for row in measured["metrics"]}
        unchanged = [row for row in rows if json.loads(row["protocol"])["exchanged"]["part"] == "nothing"]
        assert own == {row["dataset"]: row["value"] for row in unchanged if row["init"] == run.init}
        assert all(
            json.loads(row["protocol"]) in protocols for row in measured["metrics"] if row["metric"] == "perplexity"
        )
    rows = json.loads((folder / "directions.json").read_text())["metrics"]
    assert len(rows) == 6 * 7 * 3 * 2
    rows = json.loads((folder / "error_exchange.json").read_text())["metrics"]
    assert len(rows) == 5 * 2 * 2
    archived = tmp_path / "archive"
    archive(workflow.folder / "results", archived)
    assert len(pd.read_csv(archived / "exchange.csv")) == (len(parts) + 5) * 2 * 2
    assert len(pd.read_csv(archived / "directions.csv")) == 7 * 3 * 2
    only_greedy = {"grid": [{**workflow.config["grid"][0], "init": ["greedy"]}]}
    code, output = Workflow(workflow.folder, {**workflow.config, **only_greedy}).run("inquire")
    assert code != 0
    assert "runs are compared with the greedy one" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("tied", [True, False])
def test_qwen2_with_biases_runs_through(
    tmp_path: Path, tiny_model: Callable[[str, bool], Path], corpus_folder: Path, tied: bool
) -> None:
    """Every job of a run, from the model to its table, without Snakemake: what it does is the same for every family."""
    pipeline = Pipeline(tmp_path, tiny_config(tiny_model("qwen2", tied), corpus_folder))
    tokens = [pipeline.tokens(name) for name in ("calibration-s42", "eval-near", "eval-far")]
    pipeline.make(pipeline.model(), *tokens, pipeline.quantize(0, 2), pipeline.quantize(2, 3), pipeline.quantized())
    evaluations = [pipeline.perplexity("fp16", "models/tiny"), pipeline.perplexity("pre_pv")]
    pipeline.make(*evaluations)
    metrics = load_metrics([tmp_path / job.output["metrics"] for job in evaluations])
    assert (metrics.metric == "perplexity").sum() == 4
    assert (metrics.value > 1).all()
    assert len(build("rho", metrics, pipeline.config, ROOT / "paper"))


def test_jobs_of_any_size_and_a_killed_job_give_the_same_bytes(finished: Workflow, tmp_path: Path) -> None:
    """The finished grid took two blocks a job; here it takes one, and all of them with a kill on the way."""
    single, killed = (finished.copied(tmp_path / name).without_runs() for name in ("single", "killed"))
    jobs = Pipeline(single.folder, single.config)
    jobs.make(*(jobs.quantize(block, block + 1, init) for init in ("greedy", "oaem") for block in range(3)))

    killed.config["quantization"]["blocks_per_job"] = "all"
    targets = [layout.range_manifest(run.path, 0, 3) for run in parse(finished.config).runs()]
    kill_after_first_block(killed, *targets)
    kept = block_files(killed)
    assert len(kept) < 6
    before = {path: path.stat().st_mtime_ns for path in kept if path.with_suffix(".json").exists()}
    code, output = killed.run(*targets)
    assert code == 0, output
    assert before, "nothing was there to resume from"
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished block was computed again"

    assert len(finished.blocks()) == 6
    assert finished.blocks() == single.blocks() == killed.blocks()


def kill_after_first_block(workflow: Workflow, *targets: str) -> None:
    """kill -9 of snakemake and its job as soon as one block is done, leaving the lock behind as a crash would."""
    process = workflow.start(*targets)
    deadline = time.monotonic() + 300
    while not any(path.with_suffix(".json").exists() for path in block_files(workflow)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, output = workflow.run("--unlock")
    assert code == 0, output


def test_a_damaged_block_is_made_again_alone(finished: Workflow, tmp_path: Path) -> None:
    """Found by the evaluation that needs it, told with what to delete, and mended by doing just that."""
    workflow = finished.copied(tmp_path / "damaged")
    expected = workflow.blocks()
    damaged, *_ = sorted(block_files(workflow))[1:]
    damaged.write_bytes(damaged.read_bytes()[:-3])
    run = damaged.parents[1]
    for later in (run / "metrics/pre_pv-perplexity.json", workflow.folder / "results/metrics.csv"):
        later.unlink()
    stamps = {path: path.stat().st_mtime_ns for path in block_files(workflow) if path != damaged}
    code, output = workflow.run("results/metrics.csv")
    assert code != 0
    assert "0001.safetensors: missing or damaged" in output
    assert "range-*.json" in output
    assert "quantized.json and run the same command again" in output
    for manifest in [*(run / "blocks").glob("range-*.json"), run / "quantized.json"]:
        manifest.unlink()
    code, output = workflow.run("results/metrics.csv")
    assert code == 0, output
    assert workflow.blocks() == expected
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_setting_reruns_what_depends_on_it_and_nothing_else(finished: Workflow, tmp_path: Path) -> None:
    workflow = finished.copied(tmp_path / "changed")

    def planned() -> str:
        code, output = workflow.run("-n", "results/metrics.csv")
        assert code == 0, output
        return output

    assert "Nothing to be done" in planned()
    workflow.config["title"] = "Another title"
    assert "Nothing to be done" in planned()
    workflow.config["evaluation"]["batch_size"] = 2
    output = planned()
    assert jobs_of(output, "perplexity") == 3
    assert jobs_of(output, "quantize_blocks") == 0
    workflow.config["evaluation"]["batch_size"] = 1
    workflow.config["quantization"]["oaem"]["rounds"] = 2
    output = planned()
    assert jobs_of(output, "quantize_blocks") == 4
    assert jobs_of(output, "tokens") == jobs_of(output, "model") == 0


def test_a_model_that_is_not_the_expected_one_is_not_quantised(finished: Workflow, tmp_path: Path) -> None:
    workflow = finished.copied(tmp_path / "other").without_runs()
    workflow.config["models"]["tiny"]["expected_perplexity"] = {"far": 7.28}
    code, output = workflow.run("results/metrics.csv")
    assert code != 0
    assert "nothing is quantised" in output
    assert "expected 7.28 within 1.0%" in output
    assert not block_files(workflow)
    workflow.config["models"]["tiny"]["perplexity_tolerance"] = 1e6
    code, output = workflow.run("-n", "results/metrics.csv")
    assert code == 0, output
    assert jobs_of(output, "quantize_blocks") == 4
