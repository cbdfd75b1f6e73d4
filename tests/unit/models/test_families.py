"""The family table: what is in it, and how a package outside adds to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, CohereConfig

from oaem.errors import UserError
from oaem.models import families
from oaem.models.capture import block_arguments, run_block
from oaem.models.families import Family, family_of, linear_names
from oaem.models.load import linear_shapes, load_block, load_config
from tests.conftest import FAMILIES, HIDDEN, MLP, VOCABULARY


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


@pytest.mark.parametrize("name", FAMILIES)
def test_sequential_groups(name: str) -> None:
    family = family_of(name)
    short = [
        {linear.rpartition(".")[2].removesuffix("_proj") for linear in group} for group in family.sequential_groups
    ]
    fused = [{"qkv"}, {"o"}, {"gate_up"}, {"down"}]
    assert short == (fused if name == "phi3" else [{"k", "v", "q"}, {"o"}, {"up", "gate"}, {"down"}])
    assert family.block_prefix(3) == "model.layers.3."


@pytest.mark.parametrize("name", FAMILIES)
def test_groups_name_every_linear_of_a_block_once(name: str, tiny_model: Callable[[str, bool], Path]) -> None:
    folder = tiny_model(name, True)
    block = load_block(folder, 0, torch.float32, "cpu")
    linears = [name for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)]
    names = linear_names(family_of(load_config(folder)))
    assert sorted(linears) == sorted(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_groups_linears_read_one_tensor(name: str, tiny_model: Callable[[str, bool], Path]) -> None:
    """They share a Hessian, and are quantised before any of them has changed what the next group reads."""
    folder = tiny_model(name, True)
    block, order, seen = load_block(folder, 1, torch.float32, "cpu"), [], {}
    for linear in linear_names(family_of(name)):
        block.get_submodule(linear).register_forward_pre_hook(
            lambda _, inputs, linear=linear: order.append(linear) or seen.update({linear: inputs[0]})
        )
    run_block(block, torch.randn(1, 12, HIDDEN), block_arguments(folder, 1, 12, torch.float32, "cpu"))
    groups = family_of(name).sequential_groups
    assert [group for linear in order for group in groups if linear == group[0]] == list(groups)
    assert all(seen[linear] is seen[group[0]] for group in groups for linear in group)


@pytest.mark.parametrize(("architecture", "name"), [("gemma3", "gemma3_text"), ("qwen2", "qwen2")])
def test_config_from_a_gguf_file(architecture: str, name: str, tmp_path: Path) -> None:
    """transformers translates the architecture that a GGUF file names; what it saves then is of a known family."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", architecture)
    writer.add_block_count(2)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.close):
        write()
    config = AutoConfig.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    assert family_of(config).name == name
    config.save_pretrained(tmp_path)
    assert family_of(load_config(tmp_path)).name == name
    assert linear_shapes(tmp_path)["mlp.down_proj"] == (HIDDEN, MLP)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is set.*logits"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is set.*later token"),
    ],
)
def test_what_the_loss_would_not_know_is_refused(
    change: dict[str, Any], message: str, tiny_model: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    config = json.loads((tiny_model("gemma3_text", True) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        load_config(tmp_path)


def test_unknown_family_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=rf"'cohere'.*\({', '.join(sorted(FAMILIES))}\).*oaem\.families"):
        family_of(CohereConfig())


def test_a_package_adds_a_family(declare: Any) -> None:
    declare(Family("cohere"))
    assert family_of(CohereConfig()).name == "cohere"
    assert family_of("llama").name == "llama"


def test_an_entry_point_that_is_no_family_is_refused(declare: Any) -> None:
    declare("cohere")
    with pytest.raises(UserError, match=r"'extra'.*expected an oaem\.models\.families\.Family, found str"):
        family_of("llama")
