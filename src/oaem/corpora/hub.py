"""Files of a dataset on the Hugging Face hub, at a pinned revision and with checked content."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from oaem.config import Corpus
from oaem.errors import UserError
from oaem.models.hub import call_hub

log = logging.getLogger(__name__)


def fetch_file(corpus: Corpus, file: str) -> Path:
    """The local copy of one file of `corpus`; fetched once more if its checksum is wrong, then UserError."""
    from huggingface_hub import hf_hub_download

    repo = str(corpus.repo)
    what: dict[str, Any] = {"filename": file, "revision": corpus.revision, "repo_type": "dataset"}
    path = Path(call_hub(hf_hub_download, repo, **what))
    expected = corpus.sha256.get(file)
    if expected is None or checksum(path) == expected:
        return path
    log.warning("%s: %s has a wrong checksum; fetching it again", repo, file)
    path = Path(call_hub(hf_hub_download, repo, **what, force_download=True))
    require_checksum(path, expected)
    return path


def require_checksum(path: Path, expected: str) -> None:
    """UserError unless the SHA-256 of `path` is `expected`."""
    found = checksum(path)
    if found != expected:
        raise UserError(
            f"{path}: its SHA-256 is {found}, the configuration expects {expected}. The file is damaged or another "
            "version: delete it and run the same command again, or mend `sha256` and `revision` together."
        )


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
