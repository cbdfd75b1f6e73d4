"""How a job of the workflow runs: its log, its one clear message on failure, its device."""

from __future__ import annotations

import faulthandler
import logging
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oaem.errors import UserError
from oaem.runtime.atomic import is_full_disk
from oaem.runtime.devices import claim_devices
from oaem.runtime.heap import keep_freed_memory

log = logging.getLogger("oaem")
# How PyTorch's allocator, the system and Python's threads put it.
NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "can't start new thread")
GO_ON = "Then run the same command again: what is finished is kept."
USE_LESS = "run fewer jobs at once (--cores 1), or take a smaller window or batch size"
# First and last word of a job in its log; between them it either works or was ended from outside.
BEGINS, ENDS = "the job begins:", "the job ends:"


@dataclass(frozen=True)
class Failure:
    """The one message of work that failed, and whether it tells a user what to mend."""

    message: str
    mendable: bool


def run_job(snakemake: Any, work: Callable[[Any], None]) -> None:
    """Run `work(snakemake)` with logging to the job's log file and to the terminal.

    A UserError ends the job with its message alone. Anything else is a fault of this project: its traceback goes to
    the log, and the terminal is told where to find it. A job that a signal ends leaves a log without an end, which
    `sudden_end` finds.
    """
    path = Path(str(snakemake.log[0]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        start_log(path)
    except OSError as error:
        sys.exit(f"{path}: the log cannot be written ({error}); mend that and run the same command again.")
    me = f"process {os.getpid()} on {platform.node()}"
    log.debug("%s %s", BEGINS, me)
    failure = failure_of(lambda: work(snakemake), path)
    if failure is not None:
        log.error("%s", failure.message)
    log.debug("%s %s", ENDS, me)
    if failure is not None:
        logging.shutdown()
        sys.exit(1)


def sudden_end(path: Path) -> str | None:
    """What to tell of a failed job whose log breaks off; None if the job said itself how it ended, or never began.

    A process that a signal ends cannot speak: the kernel's out-of-memory killer, a limit of the system, or a native
    library that crashes for want of memory. Whoever started it asks here afterwards.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    _, begun, rest = text.rpartition(BEGINS)
    me = rest.partition("\n")[0]
    if not begun or f"{ENDS}{me}\n" in rest:
        return None
    crash = re.search(r"^Fatal Python error: (.+)$", rest, re.MULTILINE)
    how = f"{crash[1]}; the log shows where" if crash else "killed"
    return (
        f"{path}: the job was ended in the middle of its work and could not say why ({how}). Most often memory ran "
        f"out: {USE_LESS}. On a cluster it may have been a limit (mem_mb, runtime) or somebody's cancel. {GO_ON}"
    )


@contextmanager
def job_device(wanted: str, threads: int) -> Iterator[str]:
    """A torch device for the body of the block, with `threads` CPU threads; GPUs are shared out across the machine."""
    with job_devices(wanted, threads) as (device,):
        yield device


@contextmanager
def job_devices(wanted: str, threads: int, count: int = 1) -> Iterator[list[str]]:
    """The same for `count` devices at once; one GPU may be shared with other jobs, several never are."""
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()
    locks = Path(tempfile.gettempdir()) / f"oaem-gpus-{os.getuid()}"
    with claim_devices(wanted, locks, count) as devices:
        log.debug("device %s, %d threads", ", ".join(devices), threads)
        yield devices


def failure_of(work: Callable[[], None], path: Path) -> Failure | None:
    """Do the work; returns the one message of its failure, None if there is none. `path` is the log."""
    try:
        work()
    except UserError as error:
        return Failure(str(error), True)
    except KeyboardInterrupt:
        return Failure(f"interrupted. {GO_ON}", True)
    except Exception as error:
        told = _what_a_user_can_mend(error)
        if told is not None:
            return Failure(told, True)
        log.debug("unexpected failure", exc_info=True)
        return Failure(f"unexpected {type(error).__name__}: {error} (traceback in {path})", False)
    return None


def _what_a_user_can_mend(error: Exception) -> str | None:
    """The one message for a machine that is too small; None for a fault of this project."""
    if type(error).__name__ == "OutOfMemoryError":
        return f"the GPU is out of memory: {_first_line(error)} Use a GPU with more memory, or smaller batches. {GO_ON}"
    if isinstance(error, MemoryError) or any(phrase in str(error) for phrase in NO_MEMORY):
        return f"out of memory: {USE_LESS}. {GO_ON}"
    if is_full_disk(error):
        return f"no space left on the device: {_first_line(error)}. Free some. {GO_ON}"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def start_log(path: Path, to_terminal: bool = True) -> None:
    """Everything to the log file, a crash's place included; what a person wants to see to the terminal."""
    logging.raiseExceptions = False  # a log on a full disk must not bury the one message that says so
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    file = logging.FileHandler(path, mode="a", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    faulthandler.enable(file.stream or sys.stderr)  # no stream is there only with `delay`
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("  %(message)s"))
    terminal.setLevel(logging.INFO)
    root.handlers = [file]
    log.setLevel(logging.DEBUG)
    log.handlers = [terminal] if to_terminal else []
