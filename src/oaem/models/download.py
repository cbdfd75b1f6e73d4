"""Files of the hub: no byte is fetched twice, and each file is checked against what the hub says it holds.

A part of a file stays in the hub's cache when its download breaks off, even if the process is killed, and the next
attempt asks for the rest. The finished file lies where the hub's own client expects it, under a name that is its
checksum: the SHA-256 of a large file, git's SHA-1 of a small one. The pinned commit fixes both.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from oaem.errors import UserError
from oaem.models.hub import call_hub
from oaem.runtime.provenance import checksum

log = logging.getLogger(__name__)


def fetch_file(
    repo: str, file: str, revision: str | None, kind: str, *, gated: bool = False, expected: str | None = None
) -> tuple[Path, str]:
    """The local copy of one file of a repository and its SHA-256; `kind` is "model" or "dataset".

    What is in the cache is taken from there without a request. A file that differs from the checksum the hub states, or
    where it states none from `expected` (a SHA-256), is fetched once more. UserError if it still differs, or if the hub
    does not deliver.
    """
    from huggingface_hub import hf_hub_download

    wanted: dict[str, Any] = {"filename": file, "revision": revision, "repo_type": kind}
    for _ in range(2):
        call_hub(complete, repo, gated, **wanted)
        path = Path(call_hub(hf_hub_download, repo, gated, **wanted))
        found, right = checksum(path), _stated(path)
        same = found == right if len(right) == SHA256 else not right or _git_sha1(path) == right
        if same and right and expected not in (None, found):
            raise UserError(_another_version(f"{repo}, {file}", found, str(expected)))
        if same and expected in (None, found):
            if not right and expected is None:
                log.warning("%s: %s is taken as it is, for the hub states no checksum of it", repo, file)
            return path, found
        log.warning("%s: %s is damaged (SHA-256 %s)", repo, file, found)
        _forget(path)
    raise UserError(
        f"{repo}: {file} came damaged twice; its checksum is not {right or expected}. Something between the hub and "
        "this machine changes it: try another network, or fetch the file elsewhere and use `source: folder`."
    )


def complete(repo_id: str, filename: str, revision: str | None, repo_type: str, token: str | bool) -> None:
    """Fetch what is missing of a file into the hub's cache, unchecked; nothing if it is there."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    if isinstance(try_to_load_from_cache(repo_id, filename, revision=revision, repo_type=repo_type), str):
        return
    where: dict[str, Any] = {"repo_id": repo_id, "filename": filename, "repo_type": repo_type}
    stated = get_hf_file_metadata(hf_hub_url(**where, revision=revision), token=token)
    if stated.etag is None or stated.commit_hash is None:
        return  # no hub answered; its client, which is asked next, says so
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type=repo_type) / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    part, whole = folder / f"{stated.etag}.part", folder / stated.etag
    if whole.exists():
        return
    # Uncompressed, so that a place in the answer is a place in the file.
    headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity"}
    with part.open("ab") as stream:
        with suppress(OSError):  # where a file system has no locks, the check finds what two writers spoil
            fcntl.flock(stream, fcntl.LOCK_EX)
        if whole.exists():
            return
        there = stream.seek(0, os.SEEK_END)
        if stated.size is None or there > stated.size:
            there = stream.truncate(0)
        http_get(
            hf_hub_url(**where, revision=stated.commit_hash), stream, resume_size=there, headers=headers,
            expected_size=stated.size, displayed_filename=filename,
        )  # fmt: skip
        part.replace(whole)


def require_checksums(files: Mapping[str, str], expected: Mapping[str, str], where: str) -> None:
    """UserError unless every file named in `expected` is among `files` (name to SHA-256) with that checksum."""
    for name, digest in expected.items():
        if name not in files:
            raise UserError(f"{where}: `sha256` names {name}, but its files are {', '.join(sorted(files))}.")
        if files[name] != digest:
            raise UserError(_another_version(f"{where}, {name}", files[name], digest))


SHA256, SHA1 = 64, 40  # hexadecimal digits


def _stated(path: Path) -> str:
    """The checksum that the hub states for a file of its cache: the name of the blob that the file points to."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if len(name) in (SHA256, SHA1) and re.fullmatch("[0-9a-f]+", name) else ""


def _git_sha1(path: Path) -> str:
    """The name that git gives to a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _forget(path: Path) -> None:
    """Take a file out of the hub's cache: its name in the snapshot and what that name points to."""
    if path.is_symlink():
        (path.parent / path.readlink()).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _another_version(what: str, found: str, expected: str) -> str:
    return (
        f"{what}: its SHA-256 is {found}, the configuration expects {expected}. The file is damaged or another "
        "version: replace it, or mend `sha256` (and `revision` with it)."
    )
