"""A rank that does what it is told for test_ranks.py; `run_ranks` starts it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from oaem.errors import UserError
from oaem.runtime.ranks import be_rank


def work(told: dict[str, Any], device: str) -> None:
    rank = os.environ["RANK"]
    place = Path(told["place"])
    (place / f"rank-{rank}").write_text(f"{os.getpid()} {device}")
    do = told["do"][int(rank)]
    while do != "wait" and len(list(place.glob("rank-?"))) < len(told["do"]):
        time.sleep(0.01)
    if do == "complain":
        raise UserError("the disk is blue")
    if do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "wait":
        time.sleep(300)


if __name__ == "__main__":
    be_rank(work)
