"""Random streams that derive from names, never from the order of calls.

A stream is named by the run's seed and the place it serves, such as (seed, block, linear, stage): a job that resumes in
the middle draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` under `seed`, the same on every machine."""
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for the stream called `names`: draw there and move, so that every device sees the same."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
