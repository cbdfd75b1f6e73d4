"""What a change reruns: just what depends on it. And what every result says of its making, so that this can be seen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from oaem.config.schema import parse
from oaem.planning import rules as planning
from oaem.runtime import provenance
from tests.workflow.conftest import ROOT, tiny_config
from tests.workflow.test_config_errors import at

TREE = ("Snakefile", "rules", "workflow", "config", "profiles", "envs", "paper", "src")
TARGETS = ("results/metrics.csv", "results/tables/table1.csv")


@dataclass
class Grid:
    """A finished grid and the copy of the source tree that made it, which can be edited."""

    tree: Path
    folder: Path
    config: dict[str, Any]

    def snakemake(self, *arguments: str, module: str = "snakemake", **more: str) -> str:
        """Run it with `more` in its environment; returns all it printed."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config), encoding="utf-8")
        command = [sys.executable, "-m", module, "--directory", str(self.folder), "--cores", "1", *arguments]
        command += ["--configfile", str(self.folder / "config.yaml"), "--", *TARGETS]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
        done = subprocess.run(command, cwd=self.tree, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def planned(self) -> dict[str, int]:
        """The number of jobs by rule that a dry run would start."""
        output = self.snakemake("-n")
        if "Nothing to be done" in output:
            return {}
        rows = [line.split() for line in output.split("Job stats:")[1].split("total")[0].splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}

    @contextmanager
    def edited(self, *edits: tuple[str, str, str]) -> Iterator[None]:
        """Source files with (file, old, new) for the time of the body."""
        before = {name: (self.tree / name).read_text(encoding="utf-8") for name, _, _ in edits}
        for name, old, new in edits:
            text = (self.tree / name).read_text(encoding="utf-8")
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
            (self.tree / name).write_text(text.replace(old, new), encoding="utf-8")
        yield
        for name, text in before.items():
            (self.tree / name).write_text(text, encoding="utf-8")


def git(tree: Path, *arguments: str) -> str:
    command = ["git", "-C", str(tree), "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, corpus_folder: Path) -> Grid:
    """One run with PV-tuning, from a model that has an expected perplexity, made by a copy of this tree."""
    tree, folder = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("grid")
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.pyc", "*.egg-info"))
        else:
            shutil.copyfile(ROOT / name, tree / name)
    (tree / ".gitignore").write_text("__pycache__\n.snakemake\n", encoding="utf-8")
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "copy")
    config = tiny_config(tiny_llama, corpus_folder)
    config["grid"][0]["init"] = ["oaem"]
    config["quantization"]["blocks_per_job"] = "all"
    config["models"]["tiny"] |= {"expected_perplexity": {"far": 100.0}, "perplexity_tolerance": 1e9}
    text = {"corpus": "train", "protocol": "concatenated", "window": 32, "windows": 4}
    config["pv"] = {"text": text, "validation_text": text, "test": "far", "epochs": 1, "batch_size": 4}
    made = Grid(tree, folder, config)
    made.snakemake(module="tests.workflow.forked", PYTHONPATH=str(ROOT))
    assert made.planned() == {}
    return made


def test_words_rerun_nothing(grid: Grid) -> None:
    with grid.edited(
        ("src/oaem/quantization/oaem.py", '"""OA-EM: ', '"""In other words, OA-EM: '),
        ("src/oaem/quantization/kmeans.py", "RELATIVE_TOLERANCE, ABS", "# Why not?\nRELATIVE_TOLERANCE, ABS"),
        ("rules/pv_tune.smk", "# PV-tuning: ", "# Now: "),
        ("workflow/scripts/quantize_blocks.py", "def work(", "# A comment.\ndef work("),
        ("workflow/scripts/perplexity.py", '"""Perplexity of one model', '"""How well one model reads'),
        ("src/oaem/models/hub_files.py", "came damaged twice", "came damaged two times"),
    ):
        assert grid.planned() == {}


def test_a_caption_remakes_its_table_alone(grid: Grid) -> None:
    with grid.edited(
        ("src/oaem/presentation/captions.yaml", "title: Perplexity before PV-tuning", "title: Before PV-tuning")
    ):
        assert grid.planned() == {"table": 1}


FOLLOWERS = {"metrics": 1, "table": 1}
AFTER_QUANTIZATION = {"quantize_blocks": 1, "quantized": 1, "pv_tune": 1, "perplexity": 2, **FOLLOWERS}
CODE: dict[str, tuple[tuple[str, str, str], dict[str, int]]] = {
    "quantisation": (
        ("src/oaem/quantization/m_step.py", "BETA1, BETA2, EPSILON = 0.9", "BETA1, BETA2, EPSILON = 0.8"),
        AFTER_QUANTIZATION,
    ),
    "tokens": (
        ("src/oaem/corpora/tokens.py", "DOCUMENTS_A_BATCH = 256", "DOCUMENTS_A_BATCH = 128"),
        {"tokens": 5, "gate": 1, **AFTER_QUANTIZATION, "perplexity": 3},
    ),
    "tables": (
        (
            "src/oaem/presentation/tables/build.py",
            "from __future__ import annotations\n",
            "from __future__ import annotations\nANSWER = 42\n",
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", CODE)
def test_code_reruns_what_it_computes(grid: Grid, name: str) -> None:
    edit, expected = CODE[name]
    with grid.edited(edit):
        assert grid.planned() == expected


SETTINGS: dict[str, tuple[str, Any, dict[str, int]]] = {
    "codebook rate": ("quantization.codebooks", {"steps": 10, "lr": 2e-3}, AFTER_QUANTIZATION),
    "calibration": ("quantization.calibration.windows", 6, {"tokens": 1, **AFTER_QUANTIZATION}),
    "one domain": (
        "evaluation.perplexity.near.text.windows", 3, {"tokens": 1, "gate": 1, "perplexity": 3, **FOLLOWERS},
    ),
    "the domain of the choice": (
        "evaluation.perplexity.far.text.windows", 3,
        {"tokens": 1, "gate": 1, "pv_tune": 1, "perplexity": 3, **FOLLOWERS},
    ),
    "PV rate": ("pv.lr", 1e-3, {"pv_tune": 1, "perplexity": 1, **FOLLOWERS}),
    "what is expected": ("models.tiny.perplexity_tolerance", 1e8, {"gate": 1}),
    "a label": ("models.tiny.label", "Small", {"table": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_reruns_what_depends_on_it(grid: Grid, name: str) -> None:
    path, value, expected = SETTINGS[name]
    before = yaml.safe_load(yaml.safe_dump(grid.config))
    at(path, value)(grid.config)
    try:
        assert grid.planned() == expected
    finally:
        grid.config = before


def test_every_result_says_how_it_was_made(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "SOURCE", grid.tree / "src/oaem")
    config = parse(grid.config)
    (run,) = config.runs()
    stages = {
        "model": planning.model_parameters(config, "tiny"),
        "quantization": planning.quantization_parameters(config),
        "perplexity": planning.perplexity_parameters(config),
        "pv": planning.pv_parameters(config),
    }
    results, own = grid.folder / "results", f"results/{run.path}"
    files = {
        "results/models/tiny/manifest.json": ("model", None),
        "results/models/tiny/metrics/fp16-perplexity.json": ("perplexity", None),
        f"{own}/blocks/0000.json": ("quantization", 42),
        f"{own}/blocks/0002.json": ("quantization", 42),
        f"{own}/blocks/range-0000-0003.json": ("quantization", 42),
        f"{own}/quantized.json": ("quantization", 42),
        f"{own}/metrics/quantization-time.json": ("quantization", 42),
        f"{own}/metrics/pre_pv-perplexity.json": ("perplexity", 42),
        f"{own}/metrics/post_pv-perplexity.json": ("perplexity", 42),
        f"{own}/metrics/pv_tuning-time.json": ("pv", 42),
        f"{own}/pv/manifest.json": ("pv", 42),
    }
    assert {str(path.relative_to(grid.folder)) for path in results.rglob("metrics/*.json")} < set(files)
    commit = git(grid.tree, "rev-parse", "--short=12", "HEAD")
    for file, (stage, seed) in files.items():
        made = json.loads((grid.folder / file).read_text(encoding="utf-8"))["provenance"]
        assert made["settings"] == provenance.fingerprint(json.loads(stages[stage])), file
        assert made["code"] == provenance.source_fingerprint.__wrapped__(stage), file
        assert made["seed"] == seed, file
        assert made["commit"] == commit, file
        assert made["device"] == provenance.device_name("cpu"), file
        assert made["versions"].keys() >= {"torch", "transformers", "safetensors", "snakemake"}, file
    facts = json.loads((results / "models/tiny/manifest.json").read_text(encoding="utf-8"))
    stored = {path.name: provenance.checksum(path) for path in (results / "models/tiny/hf").iterdir()}
    assert facts["files"] == stored
    assert facts["fingerprint"] == provenance.fingerprint(stored)


def test_what_the_gate_hides_is_told(grid: Grid) -> None:
    """Snakemake looks for no other reason behind an ancient input: then one go is not enough, and must not seem so."""
    before = yaml.safe_load(yaml.safe_dump(grid.config))
    at("models.tiny.perplexity_tolerance", 1e8)(grid.config)
    at("pv.lr", 1e-3)(grid.config)
    try:
        told = r"settings of more rules changed \(.*pv_tune.*\): run the same command"
        with pytest.raises(AssertionError, match=told) as caught:
            grid.snakemake()
        assert "Traceback" not in str(caught.value)
        assert grid.planned() == {"pv_tune": 1, "perplexity": 1, **FOLLOWERS}
    finally:
        grid.config = before
