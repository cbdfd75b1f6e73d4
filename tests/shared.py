"""What tests share: things that are costly to make, processes that have costly imports behind them, and the order."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workflow.forked import LIBRARY

MadeOnce = Callable[[str, Callable[[Path], object]], Path]
# Processes are forked from a server that has these imported, so that starting one costs no import.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*LIBRARY, "tests.faults.warm", "snakemake.cli"])
# Folders in the order of their longest files: what starts late must be short, or one process works alone at the end.
LONGEST_FIRST = ("slurm", "workflow", "faults")


def print_to(terminal: Path) -> None:
    """Let all that this process and its children print go to a file."""
    out = os.open(terminal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """made_once(name, make): the folder that `make` fills; once, whichever of the test processes needs it first.

    Not to be changed by tests. `make` may ask for other folders; it gets an empty one, and so does the next process
    if it fails.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return once


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {folder: rank for rank, folder in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.parent.name, len(ranks)))
