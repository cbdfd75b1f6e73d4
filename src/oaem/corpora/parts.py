"""Disjoint shares of a corpus, so that nothing is scored on text it was calibrated or tuned on."""

from __future__ import annotations

import hashlib
import unicodedata

# Shares in percent. They are part of every token set's meaning: changing one moves documents between parts.
SHARES = {"calibration": 30, "pv": 30, "validation": 10, "evaluation": 30}


def part_of(text: str) -> str:
    """The one part that the document `text` belongs to: calibration, pv, validation or evaluation.

    A hash of the normalised text decides (compatibility forms, case and white space do not count), so copies of a
    document always fall in the same part, in whatever order or corpus they come.
    """
    normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    point = int.from_bytes(hashlib.sha256(normal.encode("utf-8", "surrogatepass")).digest()[:8], "big") % 100
    for part, share in SHARES.items():
        if point < share:
            return part
        point -= share
    raise AssertionError("the shares add up to 100")
