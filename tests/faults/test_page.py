"""docs/reliability.md lists the fault tests there are: no more, no fewer, and every kind of fault."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.faults.elsewhere import ELSEWHERE
from tests.faults.pipeline import ROOT
from tests.reliability import KINDS

PAGE = ROOT / "docs/reliability.md"


def marked(file: Path) -> dict[str, bool]:
    """Every test function of a file, and whether it is marked as a fault's."""
    functions = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    return {
        f"{file.relative_to(ROOT)}::{function.name}": any(
            ast.unparse(decorator).startswith("pytest.mark.fault(") for decorator in function.decorator_list
        )
        for function in functions
        if function.name.startswith("test_")
    }


def test_the_page_lists_every_fault_test() -> None:
    known = {name: mark for file in (ROOT / "tests").rglob("test_*.py") for name, mark in marked(file).items()}
    assert set(ELSEWHERE) <= set(known), "tests/faults/elsewhere.py names a test that is not there"
    expected = {name for name, mark in known.items() if mark} | set(ELSEWHERE)
    listed = re.findall(r"^\| .* \| `([^`]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {f"tests/{name}" for name in listed} == expected, (
        "run: pytest tests -m fault --reliability docs/reliability.md"
    )


def test_the_page_lists_every_kind_of_fault() -> None:
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    rows = {section.partition("\n")[0].lower(): section.count("\n| ") - 2 for section in sections}
    assert all(rows.get(kind.lower(), 0) > 0 for kind in KINDS), rows


def test_at_least_twenty_kills_hit_each_of_quantisation_and_tuning() -> None:
    """The page holds what was counted in the run that wrote it."""
    rows = re.findall(
        r"^\| (.*) \| (\d+) \| .* \| `faults/test_killed_jobs", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    kills = {deed.split()[0]: int(times) for deed, times in rows}
    assert kills["quantisation"] >= 20
    assert kills["PV-tuning"] >= 20
    assert kills["perplexity"] >= 10
