"""Every documented command plans its DAG."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def plan(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "-n", "--forceall", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def count(output: str, rule: str) -> int:
    """How many jobs of `rule` the job table of a dry run lists."""
    found = re.search(rf"^{rule}\s+(\d+)\s*$", output, re.MULTILINE)
    return int(found[1]) if found else 0


def test_the_embedded_grid() -> None:
    code, output = plan()
    assert code == 0, output
    assert count(output, "quantize_blocks") == 6
    assert count(output, "table") == 17


def test_the_papers_grid_is_planned_block_by_block() -> None:
    code, output = plan("--profile", "a100", "all")
    assert code == 0, output
    assert count(output, "quantize_blocks") == 10 * 28 + 2 * 32 + 2 * 36
    assert count(output, "quantized") == 14
    assert count(output, "pv_tune") == 14
    assert count(output, "model") == 3


@pytest.mark.parametrize("table", [1, 2, 5, 16])
def test_one_table_plans_just_what_it_needs(table: int) -> None:
    code, output = plan(f"results/tables/table{table}.csv")
    assert code == 0, output
    assert count(output, "table") == 1
    assert count(output, "report") == 0


def test_a_single_table_of_the_paper_leaves_other_models_alone() -> None:
    code, output = plan("--profile", "a100", "results/tables/table1.csv")
    assert code == 0, output
    assert count(output, "quantize_blocks") == 8 * 28
    assert count(output, "pv_tune") == 0


def test_every_snakemake_command_in_the_readme_plans() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = sorted(set(re.findall(r"^snakemake .*$", text, re.MULTILINE)))
    assert len(commands) >= 3
    for command in commands:
        words = command.split("#")[0].split()[1:]
        if "--report" in words or "slurm" in words:
            continue  # the first needs results, the second the executor plug-in: both have tests of their own
        code, output = plan(*[word for word in words if word != "-n"])
        assert code == 0, f"{command}\n{output}"
