"""The rooms of docs/architecture.md, held to the code: who imports whom, no circles, and tests that mirror them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE, DOCUMENT, TESTS = Path("src/oaem"), Path("docs/architecture.md"), Path("tests/unit")
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", re.MULTILINE)


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([\w.]+)`", cell))


# room -> (rooms that it may import, modules that it must not)
RULES = {room: (names(may), names(not_)) for room, may, not_ in ROW.findall(DOCUMENT.read_text(encoding="utf-8"))}
MODULES = {
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}


@cache
def imports(module: str) -> frozenset[str]:
    """Everything that a module imports, wherever in its code: modules of the library, and what else by full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found)


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_module_lies_in_a_room() -> None:
    assert {room_of(module) for module in MODULES if module.count(".")} == {*RULES, "errors"}


@pytest.mark.parametrize("room", RULES)
def test_a_room_imports_what_the_document_says(room: str) -> None:
    may, must_not = RULES[room]
    found = {name for module in MODULES if module.count(".") and room_of(module) == room for name in imports(module)}
    others = {room_of(name) for name in found if name.startswith("oaem.")} - {room, "errors"}
    assert others == may, "the table in docs/architecture.md is not that of the code"
    # torch may be imported where it is needed and not before: see below.
    assert not [name for name in found for bad in must_not - {"torch"} if f"{name}.".startswith(f"{bad}.")]


def test_no_module_imports_itself_through_others() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for name in sorted(imports(module) & MODULES.keys()):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_formulas_name_kernels_and_import_none() -> None:
    for module in MODULES:
        for name in imports(module) & MODULES.keys():
            if ".kernels." in name:  # named by kernels for the same device alone
                device = name.partition(".kernels.")[2].split(".")[0]
                assert f".kernels.{device}" in module, (module, name)


def test_rooms_without_torch() -> None:
    rooms = [room for room, (_, must_not) in RULES.items() if "torch" in must_not]
    assert {"config", "planning", "presentation"} <= set(rooms)
    modules = [module for module in MODULES if module.count(".") and room_of(module) in rooms]
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_test_of_a_file_is_where_one_looks_for_it() -> None:
    """test_<file>.py in the file's room; what takes a file of its own is test_<file>_<what>.py."""
    for test in TESTS.rglob("test_*.py"):
        if test.parent != TESTS:
            tested = [path.stem for path in (SOURCE / test.parent.relative_to(TESTS)).glob("*.py")]
            assert any(f"{test.stem}_".startswith(f"test_{name}_") for name in tested), test
