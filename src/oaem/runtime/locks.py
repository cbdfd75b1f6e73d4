"""Locks on files, which the kernel drops with the process that held them: kill -9 leaves none behind.

They are flock's own. The package filelock would put a marker file in their place where a file system has none, and such
a marker outlives a killed job.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)
LOCK = ".lock"


def try_lock(file: int) -> bool:
    """Lock the open file with this descriptor until it is closed; False if another one has it locked.

    OSError where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def alone_in(folder: Path, part: str = "") -> Iterator[None]:
    """Hold `folder` for this process; wait while another one has it, such as a job that outlived its Snakemake.

    part: what of the folder to hold, by any name, where others may work on the rest of it at the same time.

    Where the file system has no locks the body runs without one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{LOCK}-{part}" if part else LOCK)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            if not try_lock(lock):
                holder = os.pread(lock, 300, 0).decode() or "another process"
                log.info("%s: %s is at work here; waiting for it to end", folder, holder)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            log.debug("%s: the file system has no locks", folder)
        with suppress(OSError):  # who holds it is a courtesy, for which a full disk may have no room
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
    finally:
        os.close(lock)
