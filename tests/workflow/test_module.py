"""The workflow as a module of another one: its rules under other names, run from a folder of somebody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from oaem.corpora.tokens import read_tokens
from tests.workflow.conftest import ROOT, jobs_of, tiny_config
from tests.workflow.page import code_blocks

OWN_RULE = """
rule mine:
    input:
        "results/tokens/tiny/calibration-s42.safetensors",
    output:
        "mine.txt",
    shell:
        "wc -c < {input} > {output}"


"""


def write_snakefile(folder: Path, snakefile: str) -> None:
    """A workflow with a rule of its own and the module as docs/extending.md shows it."""
    (shown,) = code_blocks("extending.md", "As a part of another workflow", "python")
    assert "/path/to/the/clone/workflow/Snakefile" in shown
    shown = shown.replace("/path/to/the/clone/workflow/Snakefile", str(ROOT / snakefile))
    (folder / "Snakefile").write_text(OWN_RULE + shown, encoding="utf-8")


@pytest.fixture
def foreign(tmp_path: Path, tiny_llama: Path, corpus_folder: Path) -> Path:
    """A folder of another project that has a configuration of its own with this workflow's below one key."""
    grid = {"oaem": tiny_config(tiny_llama, corpus_folder)}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")
    return tmp_path


def snakemake(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--rerun-triggers", "mtime", "params", "input"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("snakefile", ["workflow/Snakefile", "Snakefile"])
def test_the_whole_workflow_plans_as_a_module(foreign: Path, snakefile: str) -> None:
    write_snakefile(foreign, snakefile)
    code, output = snakemake(foreign, "-n", "oaem_all")
    assert code == 0, output
    assert "localrules directive" not in output
    expected = {"model": 1, "tokens": 3, "quantize_blocks": 4, "perplexity": 3, "metrics": 1, "table": 17, "report": 1}
    assert {rule: jobs_of(output, f"oaem_{rule}") for rule in expected} == expected
    code, output = snakemake(foreign, "-n")
    assert code == 0, output
    assert jobs_of(output, "mine") == 1, "the target of the workflow that uses the module stays its own"
    assert jobs_of(output, "oaem_all") == jobs_of(output, "oaem_table") == 0


def test_a_target_is_made_in_the_folder_of_the_other_workflow(foreign: Path) -> None:
    write_snakefile(foreign, "workflow/Snakefile")
    code, output = snakemake(foreign)
    assert code == 0, output
    tokens, protocol = read_tokens(foreign / "results/tokens/tiny/calibration-s42.safetensors")
    assert tokens.shape == (8, 32)
    assert protocol["corpus"]["files"] == ["train.jsonl"]
    assert int((foreign / "mine.txt").read_text()) > tokens.nbytes
    assert (foreign / "logs/tokens/tiny/calibration-s42.log").exists()
    code, output = snakemake(foreign)
    assert "Nothing to be done" in output


def test_what_is_wrong_with_the_modules_configuration_is_told(foreign: Path) -> None:
    grid = yaml.safe_load((foreign / "grid.yaml").read_text(encoding="utf-8"))
    grid["oaem"]["grid"][0]["init"] = ["gredy"]
    (foreign / "grid.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")
    write_snakefile(foreign, "workflow/Snakefile")
    code, output = snakemake(foreign, "-n")
    assert code != 0
    assert "'gredy' is not an initialisation" in output
    assert "Traceback" not in output
