"""What two ranks do for test_team.py: `run_ranks` starts this module once, and it makes all tunings in turn.

Each is in a folder of its own, and what the ranks told each other lies beside them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from oaem.pv import plan, team
from oaem.pv.plan import Placement
from oaem.pv.team import Team, joined
from oaem.pv.trainer import tune
from oaem.runtime.ranks import be_rank
from tests.unit.pv.toy import make_job, make_state, make_tokens, run_toy, stopped_in, toy_perplexity

# A sequence a step and rank, so that one device adds up the same numbers in the same order.
EXACT = {"batch_size": 2, "epochs": 2, "code_lr": 0.1}
NEAR = {"batch_size": 4, "epochs": 3, "code_lr": 0.1}
STOP_IN, SAVED = 4, 2


def numbers(rank: int) -> torch.Tensor:
    """What rank adds to the sum [5, 7]: of sizes so different that the order of summation shows."""
    random = torch.Generator().manual_seed(rank)
    return torch.randn(5, 7, generator=random) * 10.0 ** torch.randint(-6, 7, (5, 7), generator=random)


def told_each_other(ours: Team) -> dict[str, Any]:
    """What each way of telling gives this rank."""
    whole, team.PIECE = team.PIECE, 4
    found: dict[str, Any] = {"numbers": ours.numbers(ours.rank, 0.1), "share": ours.share([3, 1, 4, 1])}
    for owner in range(ours.size):
        tensor = numbers(ours.rank)
        ours.sum_to(owner, tensor)
        found[f"sum to {owner}"] = tensor.tolist()
        codes = torch.full((2, 3), ours.rank, dtype=torch.uint8)
        ours.spread(owner, codes)
        found[f"spread from {owner}"] = codes.tolist()
    team.PIECE = whole
    return found


def resumed(model: Path, place: Path, ours: Team) -> None:
    """The same to its end, with a placement of its own choice."""
    lines: list[str] = []
    job = make_job(model, None, ours, **NEAR)
    measures = toy_perplexity(2), toy_perplexity(3)
    tune(job, make_state(model), make_tokens(), place / "stopped", *measures, lines.append)
    if ours.leads:
        (place / "resumed.json").write_text(json.dumps([line for line in lines if "going on" in line]))


def work(told: dict[str, str], device: str) -> None:
    model, place = Path(told["model"]), Path(told["place"])
    with joined(device) as ours:
        (place / f"told-{ours.rank}.json").write_text(json.dumps(told_each_other(ours)))
        run_toy(model, place / "near", team=ours, **NEAR)
        run_toy(model, place / "placed", Placement("disk", True, True), ours, **NEAR)
        with stopped_in(STOP_IN):
            run_toy(model, place / "stopped", team=ours, **NEAR)
        resumed(model, place, ours)
        result = run_toy(model, place / "stopped", team=ours, **NEAR)  # a finished one, which is found on every rank
        (place / f"result-{ours.rank}.json").write_text(json.dumps(result))
        plan.TOKENS_AT_ONCE[ours.device] = 1
        run_toy(model, place / "exact", team=ours, **EXACT)


if __name__ == "__main__":
    be_rank(work)
