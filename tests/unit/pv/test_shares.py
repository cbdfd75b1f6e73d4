from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oaem.pv.optimizer import PVOptimizer
from oaem.pv.shares import owners, part_of
from oaem.pv.student import Student
from oaem.pv.team import Team
from tests.unit.pv.toy import make_model, make_settings, make_state


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_part_has_one_owner_and_none_holds_too_much(model: Path, ranks: int) -> None:
    student = Student(model, make_state(model), torch.bfloat16, torch.float32, "cpu")
    teams = [Team(rank, ranks) for rank in range(ranks)]
    optimizers = [PVOptimizer(student, make_settings(), 0, team=team) for team in teams]
    for kind in ("buffers", "moments"):
        held = [name for optimizer in optimizers for name in getattr(optimizer, kind)]
        assert sorted(held) == sorted(set(held)), "two own the same"
    assert {name for each in optimizers for name in each.buffers} == set(student.linears)
    sizes = optimizers[0]._sizes()
    state = [each.buffers | {f"moments.{name}": own for name, own in each.moments.items()} for each in optimizers]
    held_bytes = [sum(tensor.nbytes for own in each.values() for tensor in own.values()) for each in state]
    assert sum(held_bytes) == sum(sizes.values())
    assert max(held_bytes) <= sum(sizes.values()) / ranks + max(sizes.values())


def test_owners_are_the_least_laden() -> None:
    assert owners({"a": 1, "b": 5, "c": 3, "d": 3}, 2) == {"b": 0, "c": 1, "d": 1, "a": 0}
    assert owners({"a": 1}, 3) == {"a": 0}
    assert part_of("model.layers.11.mlp.up_proj.codebooks") == part_of("model.layers.11") == "model.layers.11"
    assert part_of("model.embed_tokens.weight") == "model.embed_tokens.weight"
