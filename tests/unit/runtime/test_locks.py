"""A run's folder belongs to one process at a time, and to nobody once that process is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from oaem.runtime.locks import LOCK, alone_in

HOLDER = """
import sys, time
from pathlib import Path
from oaem.runtime.locks import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds `folder`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_waits_for_the_first_and_knows_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """flock belongs to an open file, so two threads stand for two processes."""
    caplog.set_level("INFO", logger="oaem")
    order: list[str] = []

    def second() -> None:
        with alone_in(tmp_path / "run"):
            order.append("second")

    with alone_in(tmp_path / "run"):
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting for it to end" not in caplog.text:
            assert thread.is_alive()
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert f"{tmp_path / 'run'}: process {os.getpid()} on {os.uname().nodename} is at work here" in caplog.text


def test_kill_9_leaves_no_stale_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="oaem")
    process = holder(tmp_path)
    process.kill()
    process.wait()
    with alone_in(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    assert caplog.text == ""


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass
