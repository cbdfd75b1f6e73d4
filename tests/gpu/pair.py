"""Tunings of the toy by all devices together, for test_pv_ranks.py: `run_ranks` starts this module."""

from __future__ import annotations

from pathlib import Path

import torch

from oaem.pv.optimizer import PVOptimizer
from oaem.pv.plan import Placement
from oaem.pv.team import Team, joined
from oaem.pv.trainer import PVJob, tune
from oaem.runtime.ranks import be_rank
from tests.gpu.test_pv import Stop, measure, tokens_of
from tests.unit.pv.toy import make_settings, make_state

STOP_IN = 4  # of six steps


def run(model: Path, folder: Path, placement: Placement, device: str, team: Team) -> None:
    """A tuning by `team`, four sequences a step."""
    settings = make_settings(code_lr=0.05, batch_size=4, gpus=team.size)
    job = PVJob(model, settings, 7, torch.bfloat16, torch.bfloat16, device, "toy", placement, team)
    tune(job, make_state(model), tokens_of(11, 1), folder, measure, measure, lambda line: None)


def stopped(model: Path, folder: Path, device: str, team: Team) -> None:
    """One that all ranks leave in the middle of a step."""
    step = PVOptimizer.step

    def dying(self: PVOptimizer, number: int) -> int:
        if number == STOP_IN:
            raise Stop
        return step(self, number)

    PVOptimizer.step = dying  # type: ignore[method-assign]
    try:
        run(model, folder, Placement(), device, team)
    except Stop:
        return
    finally:
        PVOptimizer.step = step  # type: ignore[method-assign]


def work(told: dict[str, str], device: str) -> None:
    model, place = Path(told["model"]), Path(told["place"])
    with joined(device) as team:
        run(model, place / "whole", Placement(), device, team)
        stopped(model, place / "other", device, team)
        run(model, place / "other", Placement("disk", True, True), device, team)


if __name__ == "__main__":
    be_rank(work)
