"""The family table: what is in it, and how a package outside adds to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig

from oaem.errors import UserError
from oaem.models import families
from oaem.models.families import Family, family_of, linear_names
from oaem.models.load import load_block, load_config


class Entry:
    name = "extra"

    def __init__(self, value: Any) -> None:
        self.value = value

    def load(self) -> Any:
        return self.value


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """declare(value): as if an installed package had declared `value`."""

    def install(value: Any) -> None:
        monkeypatch.setattr(families, "entry_points", lambda group: [Entry(value)] if group == "oaem.families" else [])
        families.families.cache_clear()

    yield install
    monkeypatch.undo()
    families.families.cache_clear()


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_sequential_groups(name: str) -> None:
    family = family_of(name)
    short = [
        {linear.rpartition(".")[2].removesuffix("_proj") for linear in group} for group in family.sequential_groups
    ]
    assert short == [{"k", "v", "q"}, {"o"}, {"up", "gate"}, {"down"}]
    assert family.block_prefix(3) == "model.layers.3."


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_qwen2"])
def test_groups_name_every_linear_of_a_block_once(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    block = load_block(folder, 0, torch.float32, "cpu")
    linears = [name for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)]
    names = linear_names(family_of(load_config(folder)))
    assert sorted(linears) == sorted(names)
    assert len(set(names)) == len(names)


def test_unknown_family_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"'mistral'.*\(llama, qwen2\).*oaem\.families"):
        family_of(MistralConfig())


def test_a_package_adds_a_family(declare: Any) -> None:
    declare(Family("mistral"))
    assert family_of(MistralConfig()).name == "mistral"
    assert family_of("llama").name == "llama"


def test_an_entry_point_that_is_no_family_is_refused(declare: Any) -> None:
    declare("mistral")
    with pytest.raises(UserError, match=r"'extra'.*expected an oaem\.models\.families\.Family, found str"):
        family_of("llama")
