"""What stands beside the blocks of a run: which are done, undamaged and belong together. No tensor is read, nor torch.

`blocks/0007.json` is the report of `blocks/0007.safetensors` and is written after it (artefacts.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oaem.errors import UserError
from oaem.runtime.atomic import read_json
from oaem.runtime.provenance import checksum

log = logging.getLogger(__name__)


def block_path(folder: Path, index: int) -> Path:
    """Where block `index` of a run lies."""
    return folder / f"{index:04d}.safetensors"


def block_report(folder: Path, index: int, fingerprint: str) -> dict[str, Any] | None:
    """The report of block `index` if it is done, undamaged and made under `fingerprint`; else None."""
    path = block_path(folder, index)
    if not (path.exists() and path.with_suffix(".json").exists()):
        return None
    try:
        report = read_json(path.with_suffix(".json"))
    except UserError:
        log.warning("%s: damaged report, the block is computed again", path)
        return None
    if report.get("fingerprint") != fingerprint:
        log.warning("%s: made with other settings, inputs or code, the block is computed again", path)
        return None
    if report.get("sha256") != checksum(path):
        log.warning("%s: the checksum does not agree, the block is computed again", path)
        return None
    return dict(report)


def read_range(manifest: Path) -> dict[str, Any]:
    """What the job of a range of blocks wrote last; UserError if it is damaged.

    A bit can flip in a text and leave it a text, so it is compared with the reports beside the blocks, but for times.
    """
    made = read_json(manifest)
    try:
        whole = all(_agrees(report, manifest.parent) for report in made["blocks"])
        whole &= made["provenance"].keys() == made["blocks"][-1]["provenance"].keys()
        whole &= made["fingerprint"] == made["blocks"][-1]["fingerprint"]
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(
            f"{manifest}: cannot be read as JSON that agrees with the reports of its blocks; delete it and run the "
            "same command again."
        )
    return dict(made)


def _agrees(report: Mapping[str, Any], folder: Path) -> bool:
    """Whether a report says what stands beside its block; one that cannot be read is for `check_blocks` to tell."""
    try:
        own = read_json(block_path(folder, report["block"]).with_suffix(".json"))
    except UserError:
        return True
    of_the_moment = ("provenance", "seconds")
    kept = [{key: value for key, value in each.items() if key not in of_the_moment} for each in (report, own)]
    return kept[0] == kept[1] and report.keys() == own.keys()


def check_blocks(folder: Path, reports: Sequence[Mapping[str, Any]]) -> None:
    """UserError unless every block is there, in order, undamaged, and all were made under one fingerprint."""
    fingerprints = {report["fingerprint"] for report in reports}
    if len(fingerprints) != 1 or [report["block"] for report in reports] != list(range(len(reports))):
        raise UserError(f"{folder}: the blocks do not belong together; {how_to_mend(folder)}")
    for report in reports:
        if block_report(folder, report["block"], report["fingerprint"]) is None:
            raise UserError(f"{block_path(folder, report['block'])}: missing or damaged; {how_to_mend(folder)}")


def how_to_mend(folder: Path) -> str:
    """What to do about a damaged block in `folder`."""
    made = f"{folder}/range-*.json {folder.parent}/quantized.json"
    return f"delete {made} and run the same command again: whole blocks are kept, only damaged ones computed anew."
