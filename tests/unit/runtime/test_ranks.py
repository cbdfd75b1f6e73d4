"""Jobs of several processes: what is told when one fails, and that nobody is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oaem.errors import UserError
from oaem.runtime.ranks import SAID, _why, run_ranks

MODULE = "tests.unit.runtime.rank_toy"


def run(place: Path, *do: str) -> None:
    run_ranks(MODULE, {"place": str(place), "do": do}, ["cpu"] * len(do), 1, place / "log")


def gone(process: int) -> bool:
    """Whether a process has ended, collected or not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_each_rank_has_its_device_and_all_end(tmp_path: Path) -> None:
    before = [signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGINT)]
    run(tmp_path, "end", "end")
    processes, devices = zip(*((tmp_path / f"rank-{rank}").read_text().split() for rank in range(2)), strict=True)
    assert len({os.getpid(), *map(int, processes)}) == 3
    assert devices == ("cpu", "cpu")
    assert [signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "told"),
    [("complain", "^the disk is blue$"), ("die", r"^rank 1 of 2 was killed \(SIGKILL\), and the oth")],
)
def test_one_that_fails_ends_the_others_at_once_and_one_message_tells(tmp_path: Path, does: str, told: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=told):
        run(tmp_path, "wait", does)
    assert time.monotonic() - began < 60, "it waited for the other rank"
    assert gone(int((tmp_path / "rank-0").read_text().split()[0]))


@pytest.mark.slow
@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_end_with_their_job(tmp_path: Path, deadly: signal.Signals) -> None:
    program = f"from pathlib import Path; from tests.unit.runtime.test_ranks import run; run(Path({str(tmp_path)!r}), "
    job = subprocess.Popen([sys.executable, "-c", f"{program}'wait', 'wait')"], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: sum(path.stat().st_size > 0 for path in tmp_path.glob("rank-?")) == 2)
        ranks = [int((tmp_path / f"rank-{rank}").read_text().split()[0]) for rank in range(2)]
        job.send_signal(deadly)
        _, told = job.communicate(timeout=60)
        assert job.returncode == -deadly
        wait_until(lambda: all(gone(rank) for rank in ranks), 10)
        assert "Traceback" not in told
    finally:
        job.kill()


MENDABLE = {"message": "no space", "mendable": True}
UNKNOWN = {"message": "unexpected RuntimeError: connection closed", "mendable": False}


@pytest.mark.parametrize(
    ("codes", "said", "told"),
    [
        ({0: 1, 1: -15}, {0: (1, MENDABLE)}, "no space"),
        ({0: 1, 1: 1}, {0: (1, UNKNOWN), 1: (2, MENDABLE)}, "no space"),
        ({0: 1, 1: -9}, {0: (2, UNKNOWN)}, "rank 1 of 2 was killed (SIGKILL)"),
        ({0: -15, 1: -11}, {}, "rank 1 of 2 crashed (SIGSEGV; the log shows where)"),
        ({0: 1, 1: -15}, {0: (1, UNKNOWN)}, "unexpected RuntimeError: connection closed"),
        ({0: 1, 1: 1}, {0: (2, UNKNOWN), 1: (1, {**UNKNOWN, "message": "unexpected first"})}, "unexpected first"),
        ({0: -15, 1: -15}, {}, "rank 0 of 2 was killed (SIGTERM)"),
        ({0: 3}, {}, "ranks ended with exit codes {0: 3} and did not say why"),
    ],
)
def test_the_cause_is_told_and_not_what_follows_from_it(
    tmp_path: Path, codes: dict[int, int], said: dict[int, tuple[int, dict[str, object]]], told: str
) -> None:
    for rank, (when, failure) in said.items():
        (tmp_path / SAID.format(rank)).write_text(json.dumps({"when": when, **failure}))
    assert _why(tmp_path, codes, 2).startswith(told)
