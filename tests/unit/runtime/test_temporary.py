"""What killed writers leave is swept by the next writer; what living ones write is not, wherever they live."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oaem.runtime import temporary as module
from oaem.runtime.atomic import atomic_folder, atomic_path, write_json, write_text
from oaem.runtime.temporary import WEEK, sweep

WRITER = """
import sys, time
from pathlib import Path
from oaem.runtime import atomic
path, kind = Path(sys.argv[1]), sys.argv[2]
def wait():
    print("writing", flush=True)
    time.sleep(60)
if kind == "file":
    with atomic.atomic_path(path) as temporary:
        temporary.write_text("half")
        wait()
elif kind == "folder":
    with atomic.atomic_folder(path) as temporary:
        (temporary / "config.json").write_text("half")
        wait()
else:  # between the two renames of a folder that takes another's place
    Path.rename, rename = lambda self, name: (rename(self, name), wait()), Path.rename
    with atomic.atomic_folder(path) as temporary:
        (temporary / "config.json").write_text("new")
"""
Start = Callable[[Path, str], subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """start(path, kind): a process that is in the middle of writing `path`."""
    started: list[subprocess.Popen[str]] = []

    def begin(path: Path, kind: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen([sys.executable, "-c", WRITER, str(path), kind], stdout=subprocess.PIPE, text=True)
        )
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "writing\n"
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def write(path: Path, kind: str) -> None:
    if kind == "file":
        write_text(path, "whole")
    else:
        with atomic_folder(path) as temporary:
            (temporary / "config.json").write_text("whole")


def litter(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".*"))


@pytest.mark.parametrize("kind", ["file", "folder", "replaced"])
def test_litter_of_a_killed_writer_goes_with_the_next_write(tmp_path: Path, start: Start, kind: str) -> None:
    target = tmp_path / "model.v1"
    if kind == "replaced":
        write(target, kind)
    process = start(target, kind)
    assert len(litter(tmp_path)) == (2 if kind == "replaced" else 1)
    write(tmp_path / "model.v1.json", "file")
    write(target, kind)
    assert litter(tmp_path), "swept in the middle of being written"
    process.kill()
    process.wait()
    write(tmp_path / "model.v1.json", "file")
    assert litter(tmp_path), "another name's temporary file is another writer's to sweep"
    write(target, kind)
    assert litter(tmp_path) == []
    assert (target.read_text() if kind == "file" else (target / "config.json").read_text()) == "whole"


def test_a_folder_is_swept_as_a_whole(tmp_path: Path, start: Start) -> None:
    processes = [start(tmp_path / name, "file") for name in ("0000.safetensors", "0001.safetensors")]
    processes[0].kill()
    processes[0].wait()
    sweep(tmp_path)
    assert [name.partition(".safetensors")[0] for name in litter(tmp_path)] == [".0001"]


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process is on another machine that shares the file system."""
    monkeypatch.setattr(module, "_boot", lambda: "another0boot")


def test_another_machines_file_stays_for_a_week(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the network neither its process nor, for certain, its lock can be seen."""
    target = tmp_path / "0000.safetensors"
    process = start(target, "file")
    elsewhere(monkeypatch)
    # As where the file system knows the locks of one machine alone.
    monkeypatch.setattr(module, "try_lock", lambda lock: True)
    process.kill()
    process.wait()
    write(target, "file")
    (left,) = tmp_path.glob(".*")
    for age, there in [(WEEK - 3600, True), (WEEK + 3600, False)]:
        os.utime(left, (time.time() - age, time.time() - age))
        write(target, "file")
        assert left.exists() == there


def test_a_lock_protects_where_process_numbers_mean_nothing(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another container of the same machine the writer's process cannot be seen."""
    target = tmp_path / "0000.safetensors"
    process = start(target, "file")
    monkeypatch.setattr(module, "_is_running", lambda process: False)
    write(target, "file")
    assert litter(tmp_path)
    process.kill()
    process.wait()
    write(target, "file")
    assert litter(tmp_path) == []


def test_without_locks_nothing_is_swept(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "0000.safetensors"
    process = start(target, "file")
    process.kill()
    process.wait()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write(target, "file")
    assert target.read_text() == "whole"
    assert len(litter(tmp_path)) == 1


def test_who_is_swept_before_the_lock_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a temporary file's making and its locking another container's sweep may take it for abandoned."""
    original, swept = module._lock, []

    def late(path: Path) -> int:
        lock = original(path)
        if not swept:
            swept.append(path)
            path.unlink()
        return lock

    monkeypatch.setattr(module, "_lock", late)
    write(tmp_path / "a.txt", "file")
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert len(swept) == 1


def test_what_is_the_same_keeps_its_time(tmp_path: Path) -> None:
    """So a job that outlived its Snakemake makes nothing look out of date."""
    text, made = tmp_path / "a.csv", tmp_path / "a.json"
    write_text(text, "1,2\n")
    write_json(made, {"value": 1, "provenance": {"written": "then"}})
    for path in (text, made):
        os.utime(path, (1, 1))
    write_text(text, "1,2\n")
    write_json(made, {"value": 1, "provenance": {"written": "now"}})
    assert [path.stat().st_mtime for path in (text, made)] == [1, 1]
    assert "then" in made.read_text()
    write_text(text, "1,3\n")
    write_json(made, {"value": 2, "provenance": {"written": "now"}})
    assert all(path.stat().st_mtime > 1 for path in (text, made))
    assert "now" in made.read_text()


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    write(tmp_path / "model", "folder")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model"):
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "model.json"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "whole"
