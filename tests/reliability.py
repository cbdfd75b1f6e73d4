"""The tables of docs/reliability.md, written from the tests that ran.

A test that does something bad to the project says so with `@pytest.mark.fault(kind, deed, outcome)` and, if it does it
several times, with `record_property("times", n)`; tests/faults/elsewhere.py says so for tests in other folders. Then
`pytest tests -m fault --reliability docs/reliability.md` writes the page from the tests that passed in that very run;
it refuses if one of them did not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

KINDS = (
    "kill -9 of a job",
    "kill -9 of snakemake",
    "two writers at once",
    "full disk",
    "out of memory",
    "truncated or flipped artefact",
    "missing or corrupt model files",
    "missing or corrupt text",
    "wrong tokenizer",
    "NaN or infinity",
    "all-zero weights or activations",
    "singular Hessian",
    "lost network",
    "refused or expired token",
)
SAME, MESSAGE = "goes on to the same bytes", "one message, nothing lost"
ENDS = "ends as ever"
OUTCOMES = (SAME, MESSAGE, f"{MESSAGE}; then {SAME}", ENDS)
START, END = "<!-- table: written by pytest tests -m fault --reliability docs/reliability.md -->", "<!-- end -->"
HEAD = "| what is done to it | times | what happens | test |\n| --- | --- | --- | --- |"


@dataclass(frozen=True)
class Injected:
    """One fault as its test declares it."""

    kind: str
    deed: str
    outcome: str


class Reliability:
    """Gathers the reports of fault tests; lives where results come together, also under xdist."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.times: dict[tuple[Injected, str], int] = defaultdict(int)
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties: list[tuple[str, Any]] = report.user_properties
        faults = [Injected(*value) for name, value in properties if name == "fault"]
        if not faults or (report.when != "call" and report.passed):
            return
        if not report.passed:
            self.failed.append(report.nodeid)
            return
        for fault in faults:
            times = int(dict(properties).get("times", 1))
            self.times[fault, report.nodeid.partition("[")[0]] += times

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.failed or not self.times:
            terminalreporter.write_line(f"{self.page}: not written; not passed: {', '.join(self.failed) or 'any'}")
            return
        text = self.page.read_text(encoding="utf-8")
        before, _, rest = text.partition(START)
        self.page.write_text(f"{before}{START}\n{self.table()}{END}{rest.partition(END)[2]}", encoding="utf-8")
        terminalreporter.write_line(f"{self.page}: {len(self.times)} faults, {sum(self.times.values())} times")

    def table(self) -> str:
        """A section a kind of fault, a line a test."""
        sections = []
        for kind in KINDS:
            lines = [
                f"| {fault.deed} | {times} | {fault.outcome} | `{test.removeprefix('tests/')}` |"
                for (fault, test), times in sorted(self.times.items(), key=lambda item: item[0][1])
                if fault.kind == kind
            ]
            sections.append("\n".join([f"\n## {kind[0].upper()}{kind[1:]}\n", HEAD, *lines]))
        return "\n".join(sections) + "\n\n"


def faults_of(item: pytest.Item) -> Iterator[Injected]:
    """What a test declares; a usage error if it declares something that the page has no place for."""
    for mark in item.iter_markers("fault"):
        fault = Injected(*mark.args, **mark.kwargs)
        if fault.kind not in KINDS or fault.outcome not in OUTCOMES:
            raise pytest.UsageError(f"{item.nodeid}: {fault} is of no known kind or outcome")
        yield fault


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, metavar="PAGE", help="write the table of faults that passed to PAGE")


def pytest_configure(config: pytest.Config) -> None:
    page = config.getoption("--reliability")
    if page is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reliability(page))


@pytest.hookimpl(tryfirst=True)  # before `-m fault` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from tests.faults.elsewhere import ELSEWHERE

    for item in items:
        for fault in ELSEWHERE.get(item.nodeid.partition("[")[0], ()):
            item.add_marker(pytest.mark.fault(fault.kind, fault.deed, fault.outcome))
        for fault in faults_of(item):
            item.user_properties.append(("fault", (fault.kind, fault.deed, fault.outcome)))
