"""Files of the hub, through its own client and cache, each compared with the checksum that the hub states.

The client fetches, resumes, goes through proxies and keeps; HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean
to it. Its cache calls a file by its checksum, the SHA-256 of a large one and git's SHA-1 of a small one, but it never
compares the two: that is done here, whenever a file is used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oaem.errors import UserError
from oaem.models.hub import call_hub
from oaem.runtime.devices import require_disk
from oaem.runtime.provenance import checksum

log = logging.getLogger(__name__)
SHA256, SHA1 = 64, 40  # hexadecimal digits


def fetch_snapshot(
    repo: str, revision: str | None, *, patterns: Iterable[str], ignored: Iterable[str], gated: bool = False
) -> Path:
    """The folder in the hub's cache with the files of a model repository that `patterns` name and `ignored` do not.

    Its name is the commit. UserError if the hub does not deliver, or the disk has no room for what is missing. What is
    in it may be damaged: `fetch_file` compares.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import DryRunError

    def plan(**arguments: Any) -> list[Any]:
        try:
            return list(snapshot_download(dry_run=True, **arguments))
        except DryRunError:
            # No network or no access. The call that follows serves what is in the cache, or says what is wrong.
            return []

    wanted = {"revision": revision, "allow_patterns": list(patterns), "ignore_patterns": list(ignored)}
    files = call_hub(plan, repo, gated, **wanted)
    missing = sum(file.file_size or 0 for file in files if file.will_download)
    if missing:
        require_disk(Path(constants.HF_HUB_CACHE), missing, f"the download of {repo}")
    return Path(call_hub(snapshot_download, repo, gated, **wanted))


def fetch_file(
    repo: str, file: str, revision: str | None, kind: str, *, gated: bool = False, expected: str | None = None
) -> tuple[Path, str]:
    """The local copy of one file of a repository and its SHA-256; `kind` is "model" or "dataset".

    What is in the cache under a commit is taken from there without a request. A file that differs from the checksum the
    hub states, or where the cache keeps none from `expected` (a SHA-256), is fetched once more. UserError if it still
    differs, if the hub's is not the expected one, or if the hub does not deliver.
    """
    from huggingface_hub import hf_hub_download

    wanted: dict[str, Any] = {"filename": file, "revision": revision, "repo_type": kind}
    for anew in (False, True):
        path = Path(call_hub(hf_hub_download, repo, gated, force_download=anew, **wanted))
        found, stated = checksum(path), _stated(path)
        right = stated or expected
        if right is None:
            log.warning("%s: %s is taken as it is, for the cache keeps no checksum of it", repo, file)
        if right is None or right == (found if len(right) == SHA256 else _git_sha1(path)):
            if expected not in (None, found):
                raise UserError(_another_version(f"{repo}, {file}", found, str(expected)))
            return path, found
        log.warning("%s: %s is damaged (SHA-256 %s)", repo, file, found)
        path.unlink()  # in a cache without links the client would leave the old copy there
    raise UserError(
        f"{repo}: {file} came damaged twice; its checksum is not {right}. Something between the hub and "
        "this machine changes it: try another network, or fetch the file elsewhere and use `source: folder`."
    )


def require_checksums(files: Mapping[str, str], expected: Mapping[str, str], where: str) -> None:
    """UserError unless every file named in `expected` is among `files` (name to SHA-256) with that checksum."""
    for name, digest in expected.items():
        if name not in files:
            raise UserError(f"{where}: `sha256` names {name}, but its files are {', '.join(sorted(files))}.")
        if files[name] != digest:
            raise UserError(_another_version(f"{where}, {name}", files[name], digest))


def _stated(path: Path) -> str | None:
    """The checksum that the hub states for a file of its cache: the name of the blob that the file links to.

    None where the cache holds copies, because its file system has no links.
    """
    name = path.readlink().name if path.is_symlink() else ""
    return name if len(name) in (SHA256, SHA1) and re.fullmatch("[0-9a-f]+", name) else None


def _git_sha1(path: Path) -> str:
    """The name that git gives to a file's content. Small files alone are known by it."""
    from huggingface_hub.utils.sha import git_hash

    return str(git_hash(path.read_bytes()))


def _another_version(what: str, found: str, expected: str) -> str:
    return (
        f"{what}: its SHA-256 is {found}, the configuration expects {expected}. The file is damaged or another "
        "version: replace it, or mend `sha256` (and `revision` with it)."
    )
