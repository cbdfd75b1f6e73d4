"""Exchange of layers: what a part is, and that a model is itself again afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oaem.config.geometry import Geometry
from oaem.config.grid import Run
from oaem.corpora.tokens import write_tokens
from oaem.evaluation.exchange import exchanged, measure_exchange, parts_of
from oaem.models.load import load_model
from oaem.runtime.seeds import generator

LINEARS = [f"model.layers.{block}.{name}" for block in (0, 1) for name in ("mlp.up_proj", "self_attn.o_proj")]
NORMS = [f"model.layers.{block}.input_layernorm.weight" for block in (0, 1)]


def test_parts_are_kinds_of_linears_and_blocks() -> None:
    assert parts_of(LINEARS, NORMS, "model.layers") == {
        "nothing": [],
        "mlp.up_proj": ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"],
        "self_attn.o_proj": ["model.layers.0.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.weight"],
        "block 0": [f"{name}.weight" for name in LINEARS[:2]] + NORMS[:1],
        "block 1": [f"{name}.weight" for name in LINEARS[2:]] + NORMS[1:],
    }


def test_a_model_is_itself_again_afterwards() -> None:
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    own, given = model.weight.detach().clone(), dict(other.named_parameters())
    with pytest.raises(RuntimeError, match="stop"), exchanged(model, given, ["weight"]):
        assert torch.equal(model.weight, other.weight)
        assert not torch.equal(model.bias, other.bias)
        raise RuntimeError("stop")
    assert torch.equal(model.weight, own)


def test_a_model_with_all_blocks_of_another_measures_what_that_one_does(
    tiny_model: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    """The tiny models differ in their blocks alone, so each with all of the other's is the other, to the bit."""
    folder = tiny_model("llama", True)
    models = [load_model(folder, torch.float32, "cpu") for _ in range(2)]
    names = [name for name, _ in models[0].named_parameters() if ".layers." in name]
    with torch.no_grad():
        for name, parameter in models[1].named_parameters():
            if name in names:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator(1, name))
    tokens = torch.randint(320, (2, 40), generator=generator(2, "tokens"), dtype=torch.int32)
    write_tokens(tmp_path / "eval-text.safetensors", tokens, {})
    runs = [Run("tiny", Geometry(2, 3, 4), init, 1, 1, 0) for init in ("oaem", "greedy")]
    parts = {"nothing": [], "all": names, "norms": [name for name in names if "norm" in name]}
    found = measure_exchange(
        dict(zip(runs, models, strict=True)),
        parts,
        {"text": {"role": "far", "label": "Text"}},
        [tmp_path / "eval-text.safetensors"],
        2,
        "cpu",
    )
    value = {(row.run.init, row.protocol["exchanged"]["part"]): row.value for row in found if row.run is not None}
    assert len(found) == len(value) == 6
    assert value["oaem", "all"] == value["greedy", "nothing"] != value["oaem", "nothing"] == value["greedy", "all"]
    assert len({value["oaem", part] for part in parts}) == 3
    assert {row.protocol["exchanged"]["from"] for row in found if row.run == runs[0]} == {"greedy"}
