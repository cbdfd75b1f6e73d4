"""The processor as the system describes it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Processor:
    """`name` as a person knows it, `kind` vendor, family and model, by which one design is told from the next.

    `vendor` and `flags` (instruction sets) are as Linux spells them, and empty on another system.
    """

    name: str
    kind: str
    vendor: str
    flags: frozenset[str]


@cache
def processor() -> Processor:
    """The first processor of this machine."""
    try:
        text = CPUINFO.read_text(encoding="utf-8")
    except OSError:
        text = ""
    facts = {}
    for line in text.split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    vendor = facts.get("vendor_id", "")
    return Processor(
        name=facts.get("model name") or platform.processor() or "cpu",
        kind=f"{vendor} family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else "",
        vendor=vendor,
        flags=frozenset((facts.get("flags") or facts.get("Features", "")).split()),  # x86 or Arm
    )
