"""Temporary names beside what is being written, and what becomes of them when their writer is killed.

`.<name>.<boot>-<process>-<random>.tmp` is locked by its writer as long as it writes. The next writer of the same name
removes what earlier ones left, if they are gone for certain: written on this boot of this machine, by a process that is
no more, and not locked, which also tells where process numbers do not, in containers. About other machines that share
the file system neither can be known: what they left goes a week after it was last touched, longer than any job writes.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from uuid import uuid4

from oaem.runtime.locks import try_lock

UNFINISHED, REPLACED = ".tmp", ".old"
WEEK = 7 * 24 * 3600.0


@contextmanager
def temporary(target: Path, folder: bool = False) -> Iterator[Path]:
    """A new empty file, or folder, beside `target`; removed at the end of the body if it still has that name.

    The folder of `target` must exist. What killed writers of `target` left there is removed first.
    """
    sweep(target.parent, target.name)
    start = f".{target.name}.{_boot()}-{os.getpid()}-"
    path, lock = _make(target.parent, start, folder)
    try:
        yield path
    finally:
        _remove(path)
        os.close(lock)


@contextmanager
def moved_away(target: Path, name: Path) -> Iterator[None]:
    """Nothing lies at `target` while the body runs; what did is removed after it, or put back if nothing is there.

    name: what it is called meanwhile, of the same boot and process.
    """
    if not target.exists():
        yield
        return
    lock = _lock(target)
    try:
        target.rename(name)
        try:
            yield
        finally:
            if not target.exists():
                name.rename(target)
            _remove(name)
    finally:
        os.close(lock)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers of `name`, or of anything, left in `folder`; see above for who counts as such."""
    start = "*" if name is None else glob.escape(name)
    for ending in (UNFINISHED, REPLACED):
        for path in folder.glob(f".{start}.*{ending}"):
            with suppress(OSError):  # swept by another one meanwhile, or on a file system without locks
                _sweep(path)


def _sweep(path: Path) -> None:
    boot, _, rest = path.name.split(".")[-2].partition("-")
    if boot == _boot():
        if _is_running(int(rest.partition("-")[0])):
            return
    elif time.time() - path.lstat().st_mtime < WEEK:
        return
    lock = _open(path, os.O_NOFOLLOW)
    try:
        if try_lock(lock):
            _remove(path)
    finally:
        os.close(lock)


def _make(where: Path, start: str, folder: bool) -> tuple[Path, int]:
    """A new temporary file or folder, and the descriptor that holds its lock."""
    while True:
        if folder:
            path = Path(tempfile.mkdtemp(UNFINISHED, start, where))
        else:
            handle, name = tempfile.mkstemp(UNFINISHED, start, where)
            os.close(handle)
            path = Path(name)
        with suppress(FileNotFoundError):  # swept before it was locked
            lock = _lock(path)
            if path.exists():
                return path, lock
            os.close(lock)


def _lock(path: Path) -> int:
    """Lock a file or folder while the descriptor that is returned is open; where there are no locks nobody sweeps."""
    lock = _open(path)
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _open(path: Path, flags: int = 0) -> int:
    # To write, because over NFS only that allows an exclusive lock; a folder cannot be opened so.
    return os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | flags)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@cache
def _boot() -> str:
    """Names this boot of this machine, within which process numbers and locks can be trusted."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")[:12]
    except OSError:
        return uuid4().hex[:12]  # nobody else's: to all others this process is on another machine
