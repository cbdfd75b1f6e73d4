"""Files that are either whole or absent: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import errno
import filecmp
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oaem.errors import UserError
from oaem.runtime.temporary import REPLACED, moved_away, temporary


@contextmanager
def atomic_path(path: Path | str, durable: bool = True) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the name `path` when the body ends without an error.

    Two writers at once each have their own temporary file, so the last rename wins and no reader ever sees a mixture.
    A file that holds the same bytes already keeps its time of change: a job that outlived its Snakemake must not make
    all that was read from the file look out of date. Without `durable` a power cut may leave a damaged file, for
    readers that can tell and do without.
    """
    path = Path(path)
    with _full_disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path) as unfinished:
            yield unfinished
            if _same_bytes(unfinished, path):
                return
            if durable:
                with unfinished.open("rb") as written:
                    os.fsync(written.fileno())
            unfinished.chmod(0o644)
            unfinished.replace(path)


@contextmanager
def atomic_folder(folder: Path | str) -> Iterator[Path]:
    """A temporary sibling of `folder` that takes its name, and the place of an earlier one, if the body succeeds."""
    folder = Path(folder)
    with _full_disk_told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary(folder, folder=True) as unfinished:
            yield unfinished
            for file in unfinished.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
                if file.stat().st_nlink == 1:  # a hard link is somebody else's file, too
                    file.chmod(0o644)
            unfinished.chmod(0o755)
            with moved_away(folder, unfinished.with_suffix(REPLACED)):
                unfinished.rename(folder)


def _same_bytes(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except FileNotFoundError:
        return False


@contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    """Turn what the body raises for want of disk space into a UserError about `path`."""
    try:
        yield
    except Exception as error:
        if is_full_disk(error):
            raise UserError(f"{path}: no space left on the device; free some and run the same command again.") from None
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether `error` says that a device or a quota is full; libraries in Rust say so in their message alone."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in numbers
    return any(f"(os error {number})" in str(error) for number in numbers)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Mapping[str, Any] | list[Any]) -> None:
    """Write `value` as readable JSON with sorted keys, atomically; NaN and infinity are refused.

    A file that says the same already, apart from its `provenance` (who wrote it when), is left as it is.
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    if not _says(Path(path), json.loads(text)):
        write_text(path, text)


def _says(path: Path, value: Any) -> bool:
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(_without_provenance(there) == _without_provenance(value))


def _without_provenance(value: Any) -> Any:
    return {key: item for key, item in value.items() if key != "provenance"} if isinstance(value, dict) else value


def read_json(path: Path | str) -> Any:
    """The value in the JSON file `path`; UserError if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({error}); delete it and run the same command again."
        ) from None
