"""Tunings of the toy by all devices together, for test_pv_ranks.py: `run_ranks` starts this module."""

from __future__ import annotations

from pathlib import Path

import torch

from oaem.pv.plan import Placement
from oaem.pv.team import Team, joined
from oaem.pv.trainer import PVJob, tune
from oaem.runtime.ranks import be_rank
from tests.gpu.test_pv import measure, tokens_of
from tests.unit.pv.toy import make_settings, make_state, stopped_in

STOP_IN = 4  # of six steps


def run(model: Path, folder: Path, placement: Placement, device: str, team: Team) -> None:
    """A tuning by `team`, four sequences a step."""
    settings = make_settings(code_lr=0.05, batch_size=4, gpus=team.size)
    job = PVJob(model, settings, 7, torch.bfloat16, torch.bfloat16, device, "toy", placement, team)
    tune(job, make_state(model), tokens_of(11, 1), folder, measure, measure, lambda line: None)


def work(told: dict[str, str], device: str) -> None:
    model, place = Path(told["model"]), Path(told["place"])
    with joined(device) as team:
        run(model, place / "whole", Placement(), device, team)
        with stopped_in(STOP_IN):
            run(model, place / "other", Placement(), device, team)
        run(model, place / "other", Placement("disk", True, True), device, team)


if __name__ == "__main__":
    be_rank(work)
