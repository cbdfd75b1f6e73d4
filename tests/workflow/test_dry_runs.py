"""Every documented command plans its DAG."""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.workflow.conftest import ROOT, jobs_of, snakemake


def plan(*arguments: str) -> tuple[int, str]:
    """Exit code and output of a dry run of everything; on one core unless the arguments say otherwise."""
    return planned(arguments if "--cores" in arguments else ("--cores", "1", *arguments))


@cache  # the README shows again what other tests have planned
def planned(arguments: tuple[str, ...]) -> tuple[int, str]:
    return snakemake("-n", "--forceall", *arguments)


def test_the_embedded_grid() -> None:
    code, output = plan()
    assert code == 0, output
    assert jobs_of(output, "quantize_blocks") == 6
    assert jobs_of(output, "downstream") == 3, "the unquantised model and the two runs at the first search point"
    assert jobs_of(output, "table") == 17


def test_the_papers_grid_is_planned_block_by_block() -> None:
    code, output = plan("--profile", "a100", "all")
    assert code == 0, output
    assert jobs_of(output, "quantize_blocks") == 10 * 28 + 2 * 32 + 2 * 36
    assert jobs_of(output, "quantized") == 14
    assert jobs_of(output, "pv_tune") == 14
    assert jobs_of(output, "model") == 3


def test_the_sweep_of_rho_has_a_table_more() -> None:
    code, output = plan("--configfile", "config/rho-sweep.yaml")
    assert code == 0, output
    assert jobs_of(output, "quantize_blocks") == jobs_of(output, "pv_tune") == 20
    assert jobs_of(output, "downstream") == 0
    assert jobs_of(output, "table") == 18
    assert jobs_of(output, "figure") == 7


@pytest.mark.parametrize(
    ("files", "pairs"),
    [
        (("config/config.yaml", "config/inquiry.yaml"), 3),
        (("config/evidence.yaml",), 6),
        (("config/evidence.yaml", "config/ablations/rounds-1.yaml"), 3),
    ],
)
def test_inquire_asks_of_every_pair(files: tuple[str, ...], pairs: int) -> None:
    """Greedy partners are planned where the grid has none; no run is tuned for it."""
    code, output = plan("--configfile", *files, "--", "inquire")
    assert code == 0, output
    for rule in ("layer_exchange", "error_directions", "error_exchange"):
        assert jobs_of(output, rule) == pairs
    assert jobs_of(output, "quantized") == 2 * pairs
    assert jobs_of(output, "perplexity") == 2 * pairs + 1
    assert jobs_of(output, "pv_tune") == jobs_of(output, "report") == 0


@pytest.mark.parametrize("table", [1, 2, 5, 16])
def test_one_table_plans_just_what_it_needs(table: int) -> None:
    code, output = plan(f"results/tables/table{table}.csv")
    assert code == 0, output
    assert jobs_of(output, "table") == 1
    assert jobs_of(output, "report") == 0


def test_a_single_table_of_the_paper_leaves_other_models_alone() -> None:
    code, output = plan("--profile", "a100", "results/tables/table1.csv")
    assert code == 0, output
    assert jobs_of(output, "quantize_blocks") == 8 * 28
    assert jobs_of(output, "pv_tune") == 0


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


def test_the_grid_of_three_families_prints_its_plan_and_plans() -> None:
    code, output = snakemake("--cores", "1", "plan", "--configfile", "config/three-models.yaml", fresh=("plan",))
    assert code == 0, output
    assert "16 runs on h100" in output
    code, output = plan("--profile", "a100", "all", "--configfile", "config/three-models.yaml")
    assert code == 0, output
    assert jobs_of(output, "model") == 4
    assert jobs_of(output, "quantize_blocks") == 16
