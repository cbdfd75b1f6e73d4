"""A tiny grid on a tiny random model, run by the real workflow in a folder of its own."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.shared import SERVER, print_to
from tests.workflow.forked import forked_scripts

if TYPE_CHECKING:
    from tests.shared import MadeOnce

SECONDS = 1800  # for a grid on a slow and busy machine
ROOT = Path(__file__).resolve().parents[2]
WORDS = ["river", "mill", "water", "paper", "stone", "bridge", "meadow", "village", "spring", "autumn", "wheel", "sea"]


def _main(arguments: tuple[str, ...], environment: dict[str, str], terminal: Path, fresh: Collection[str]) -> None:
    """The body of a snakemake's process."""
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    print_to(terminal)
    from snakemake.cli import main

    with forked_scripts(fresh):
        main(list(arguments))


def snakemake(*arguments: str, fresh: Collection[str] = ()) -> tuple[int, str]:
    """Run snakemake's main in the tree, in a process that has it imported; returns exit code and all it printed.

    Jobs are forked, too (forked.py), but for those of the rules `fresh`: they get a new interpreter, as for a user.
    """
    with tempfile.TemporaryDirectory() as folder:
        terminal = Path(folder) / "terminal.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = SERVER.Process(target=_main, args=(arguments, environment, terminal, fresh))
        process.start()
        process.join(SECONDS)
        output = terminal.read_text(encoding="utf-8")
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"snakemake {arguments} does not end\n{output}")
        return process.exitcode, output


@dataclass
class Workflow:
    """A folder with a configuration, and the workflow to run there."""

    folder: Path
    config: dict[str, Any]

    def arguments(self, *more: str) -> tuple[str, ...]:
        """What snakemake is told, the configuration written for it."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config), encoding="utf-8")
        places = ("-s", ROOT / "Snakefile", "--directory", self.folder, "--configfile", self.folder / "config.yaml")
        return (*map(str, places), "--cores", "1", *more)

    def start(self, *arguments: str, module: str = "snakemake", **options: Any) -> subprocess.Popen[str]:
        """Start snakemake in a process group of its own; `module` is what Python runs."""
        command = [sys.executable, "-m", module, *self.arguments(*arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **options)

    def run(self, *arguments: str, env: dict[str, str] | None = None, fresh: Collection[str] = ()) -> tuple[int, str]:
        """Run snakemake to its end, as `snakemake` does; returns its exit code and all it printed.

        With additions `env` to the environment it is a new process, and `fresh` has no say.
        """
        if env is None:
            return snakemake(*self.arguments(*arguments), fresh=fresh)
        module = "snakemake" if "-n" in arguments else "tests.workflow.forked"
        process = self.start(*arguments, env=env, module=module)
        output, _ = process.communicate(timeout=SECONDS)
        return process.returncode, output

    def blocks(self) -> dict[str, bytes]:
        """Every block artefact of every run, by its path."""
        found = sorted((self.folder / "results").glob("runs/**/blocks/*.safetensors"))
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}

    def copied(self, folder: Path) -> Workflow:
        """The same with all it has made, in a folder that is not there yet: snakemake finds nothing to do in it."""
        shutil.copytree(self.folder, folder)
        return Workflow(folder, copy.deepcopy(self.config))

    def without_runs(self) -> Workflow:
        """The same with no run begun; model, tokens and the unquantised model's measurements stay."""
        for folder in ("results/runs", "logs/runs"):
            shutil.rmtree(self.folder / folder)
        return self


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
def corpus_folder(made_once: MadeOnce) -> Path:
    return made_once("corpus", write_corpus)


@pytest.fixture
def workflow(tmp_path: Path, tiny_llama: Path, corpus_folder: Path) -> Workflow:
    """The tiny grid on a tiny Llama in an empty folder."""
    return Workflow(tmp_path, tiny_config(tiny_llama, corpus_folder))


@pytest.fixture(scope="session")
def finished(made_once: MadeOnce, tiny_llama: Path, corpus_folder: Path) -> Workflow:
    """The tiny grid with all that `snakemake` makes of it, tables and report included. Tests change copies of it."""
    config = tiny_config(tiny_llama, corpus_folder)

    def make(folder: Path) -> None:
        code, output = Workflow(folder, config).run(fresh=("claims", "metrics", "report", "summary"))
        assert code == 0, output

    return Workflow(made_once("finished", make), config)
