"""Numbers that a method could stumble over: they are refused by name, or quantised like any others."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from oaem.calibration.artefacts import load_block_state
from tests.faults.conftest import Fresh
from tests.faults.pipeline import RUN, Pipeline
from tests.reliability import ENDS, MESSAGE
from tests.workflow.conftest import Workflow

Change = Callable[[dict[str, Tensor]], None]


def with_weights(pipeline: Pipeline, change: Change) -> Pipeline:
    """Another model in the pipeline: its own with changed weights."""
    folder = Path(pipeline.values["models"]["tiny"]["path"])
    other = pipeline.folder / "model"
    other.mkdir()
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (other / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    pipeline.values["models"]["tiny"]["path"] = str(other)
    pipeline.make(pipeline.model())
    return pipeline


def put(name: str, value: float, *where: int) -> Change:
    def change(weights: dict[str, Tensor]) -> None:
        weights[name][where] = value

    return change


LINEAR, NORM = "model.layers.2.mlp.up_proj.weight", "model.layers.3.input_layernorm.weight"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", [LINEAR, NORM])
@pytest.mark.fault("NaN or infinity", "one weight of the model, met by quantisation", MESSAGE)
def test_quantisation_of_a_weight_that_is_no_number(fresh: Fresh, name: str, bad: float) -> None:
    pipeline = with_weights(fresh(), put(name, bad, 3))
    code, output = pipeline.run(pipeline.quantize())
    assert code == 1, output
    _, _, index, place = name.split(".", 3)
    assert f"results/models/tiny/hf: block {index}, {place} holds NaN or infinity" in output
    assert "Traceback" not in output and "unexpected" not in output, output
    assert len(pipeline.finished_blocks()) == int(index), "what came before is not there"


def overflow(weights: dict[str, Tensor]) -> None:
    """Finite weights, but what flows through block 3 is not."""
    weights["model.layers.3.self_attn.v_proj.weight"].fill_(3e38)


@pytest.mark.fault("NaN or infinity", "activations that overflow in the middle of a model", MESSAGE)
def test_activations_that_are_no_numbers(fresh: Fresh) -> None:
    pipeline = with_weights(fresh(), overflow)
    code, output = pipeline.run(pipeline.quantize())
    assert code == 1, output
    assert f"{RUN}, block 3: " in output
    assert "Traceback" not in output and "unexpected" not in output, output
    assert len(pipeline.finished_blocks()) == 3, "what came before is not there"


@pytest.mark.slow
@pytest.mark.fault("NaN or infinity", "one weight of the model, met by the whole workflow", MESSAGE)
def test_the_workflow_stops_at_a_weight_that_is_no_number(fresh: Fresh) -> None:
    """The message reaches the terminal of whoever started it, and nothing that depends on the block is begun."""
    pipeline = with_weights(fresh(), put(LINEAR, math.nan, 3))
    grid = Workflow(pipeline.folder, pipeline.values)
    code, output = grid.run(f"results/{RUN}/quantized.json")
    assert code != 0
    assert "results/models/tiny/hf: block 2, mlp.up_proj.weight holds NaN or infinity" in output
    assert "Traceback" not in output and "unexpected" not in output, output
    assert len(pipeline.finished_blocks()) == 2
    assert not (pipeline.run_folder / "quantized.json").exists()


@pytest.mark.fault("NaN or infinity", "one weight of the model, met by an evaluation", MESSAGE)
def test_evaluation_of_a_weight_that_is_no_number(fresh: Fresh) -> None:
    pipeline = with_weights(fresh(), put(LINEAR, math.nan, 3))
    arguments = pipeline.perplexity("fp16", "models/tiny")
    code, output = pipeline.run(arguments)
    assert code == 1, output
    assert "came out as nan" in output
    assert "Traceback" not in output and "unexpected" not in output, output
    assert not (pipeline.folder / arguments.output["metrics"]).exists()


def zero_columns(weights: dict[str, Tensor]) -> None:
    """Some inputs of attention and MLP are zero for every token; and in block 4 all inputs of o_proj."""
    weights[NORM][:8] = 0
    weights["model.layers.1.post_attention_layernorm.weight"][5] = 0
    weights["model.layers.4.self_attn.v_proj.weight"][:] = 0


def zero_rows(weights: dict[str, Tensor]) -> None:
    """Half the vocabulary is embedded at zero: such tokens enter the first block as rows of zeros."""
    weights["model.embed_tokens.weight"][::2] = 0


def zero_outputs(weights: dict[str, Tensor]) -> None:
    """Rows of weights that are zero, and a whole layer of them."""
    weights[LINEAR][[0, 7]] = 0
    weights["model.layers.3.mlp.down_proj.weight"][:] = 0


ZEROS = "all-zero weights or activations"


@pytest.mark.parametrize("init", ["greedy", "oaem"])
@pytest.mark.parametrize("change", [zero_columns, zero_rows, zero_outputs])
@pytest.mark.fault(ZEROS, "columns or rows of the calibration inputs or of weights, in a whole model", ENDS)
def test_zeros(fresh: Fresh, change: Change, init: str) -> None:
    pipeline = with_weights(fresh(), change)
    pipeline.values["grid"][0]["init"] = [init]
    pipeline.make(pipeline.quantize(init=init))
    assert_finite(pipeline, init)


@pytest.mark.parametrize("init", ["greedy", "oaem"])
@pytest.mark.fault("singular Hessian", "fewer calibration tokens than inputs of any layer, in a whole model", ENDS)
def test_fewer_tokens_than_inputs(fresh: Fresh, init: str) -> None:
    pipeline = fresh()
    pipeline.values["quantization"]["calibration"]["windows"] = 1
    pipeline.values["grid"][0]["init"] = [init]
    pipeline.make(pipeline.tokens("calibration-s42"), pipeline.quantize(init=init))
    assert_finite(pipeline, init)


def assert_finite(pipeline: Pipeline, init: str) -> None:
    folder = pipeline.folder / "results" / pipeline.path(init) / "blocks"
    for index in range(6):
        state = load_block_state(folder, index)
        assert len(state.linears) == 7
        assert all(bool(torch.isfinite(weight.dequantize()).all()) for weight in state.linears.values())
