"""A tiny grid on a tiny random model, run by the real workflow in a folder of its own."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["river", "mill", "water", "paper", "stone", "bridge", "meadow", "village", "spring", "autumn", "wheel", "sea"]


@dataclass
class Workflow:
    """A folder with a configuration, and the workflow to run there."""

    folder: Path
    config: dict[str, Any]

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start snakemake in a process group of its own."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config), encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--directory", str(self.folder)]
        command += ["--configfile", str(self.folder / "config.yaml"), "--cores", "1", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **options)

    def run(self, *arguments: str, **options: Any) -> tuple[int, str]:
        """Run snakemake to its end; returns its exit code and all it printed."""
        process = self.start(*arguments, **options)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def blocks(self) -> dict[str, bytes]:
        """Every block artefact of every run, by its path."""
        found = sorted((self.folder / "results").glob("runs/**/blocks/*.safetensors"))
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}


def jobs_of(output: str, rule: str) -> int:
    """How many jobs of `rule` the job table of a dry run lists."""
    found = re.search(rf"^{rule}\s+(\d+)\s*$", output, re.MULTILINE)
    return int(found[1]) if found else 0


def sentences(count: int, seed: int) -> list[str]:
    """Documents of made-up sentences, the same on every call."""
    import random

    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(20, 60))) + f", {draw.randint(0, 9999)}." for _ in range(count)]


def write_corpus(folder: Path) -> None:
    import json

    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in [("train", 1), ("test", 2)]:
        lines = [json.dumps({"text": text}) for text in sentences(300, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def tiny_config(model: Path, corpus: Path) -> dict[str, Any]:
    """Two runs of three blocks: seconds of work, through every stage there is."""

    def text(name: str, windows: int) -> dict[str, Any]:
        return {"corpus": name, "protocol": "joined", "window": 32, "windows": windows}

    calibration = {"corpus": "train", "protocol": "concatenated", "shuffle": True, "window": 32, "windows": 8}
    return {
        "title": "Tiny grid",
        "device": "cpu",
        "models": {"tiny": {"source": "folder", "path": str(model), "label": "Tiny", "blocks": 3}},
        "geometries": {"2": {"num_codebooks": 2, "nbits": 4, "group_size": 4}},
        "corpora": {
            name: {"source": "folder", "path": str(corpus), "files": [f"{name}.jsonl"]} for name in ("train", "test")
        },
        "quantization": {
            "calibration": calibration,
            "kmeans": {"iterations": 10},
            "oaem": {"steps": 20},
            "codebooks": {"steps": 10, "lr": 1e-3},
            "block_tuning": {"epochs": 1},
            "blocks_per_job": 2,
        },
        "evaluation": {
            "perplexity": {
                "near": {"role": "in_domain", "label": "Near", "text": text("train", 4)},
                "far": {"role": "far", "label": "Far", "text": text("test", 4)},
            }
        },
        "grid": [
            {
                "model": "tiny",
                "bpp": ["2"],
                "init": ["greedy", "oaem"],
                "search": [{"beam_width": 2, "max_epochs": 2}],
                "seeds": [42],
            }
        ],
    }


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture
def workflow(tmp_path: Path, tiny_llama: Path, corpus_folder: Path) -> Workflow:
    """The tiny grid on a tiny Llama in an empty folder."""
    return Workflow(tmp_path, tiny_config(tiny_llama, corpus_folder))


@pytest.fixture
def make_workflow(tmp_path: Path, corpus_folder: Path) -> Callable[[Path, str], Workflow]:
    """make_workflow(model, name): the tiny grid on another model, in a folder called `name`."""

    def make(model: Path, name: str) -> Workflow:
        (tmp_path / name).mkdir()
        return Workflow(tmp_path / name, copy.deepcopy(tiny_config(model, corpus_folder)))

    return make
