"""Which rank owns what: the state of the optimiser is cut into parts, and each part has one owner."""

from __future__ import annotations

import re
from collections.abc import Mapping


def part_of(name: str) -> str:
    """The part that a tensor belongs to: its block, or itself outside the blocks."""
    block = re.match(r".*?\.\d+(?=\.)", name)
    return block[0] if block else name


def owners(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """The owner of each part, by the bytes of its state: the largest first, each to the rank that holds least by then.

    The same on every rank; among equals the first part and the first rank come first.
    """
    held = [0] * ranks
    found = {}
    for part in sorted(sizes, key=lambda part: -sizes[part]):
        found[part] = held.index(min(held))
        held[found[part]] += sizes[part]
    return found
