"""Where an error lies: planted errors are found, and the sums are the layer's own error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oaem.calibration.artefacts import QuantizedState
from oaem.config.geometry import Geometry
from oaem.config.grid import Run
from oaem.evaluation.directions import error_directions, measure_directions
from oaem.models.load import linear_shapes, load_model
from oaem.quantization.weight import AdditiveWeight, relative_error
from oaem.runtime.seeds import generator

OUT, IN = 300, 200


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and a hessian with one direction that outweighs the others."""
    weight = torch.randn(OUT, IN, generator=generator(3, "weight"))
    inputs = torch.randn(500, IN, generator=generator(3, "inputs"))
    inputs[:, 0] *= 30
    return weight, inputs.T @ inputs / 500


def test_the_whole_error_is_the_layers() -> None:
    """To 1e-5: the layer's own error is computed in float32."""
    weight, hessian = problem()
    quantized = weight + 0.1 * torch.randn(OUT, IN, generator=generator(3, "error"))
    found = error_directions(weight, quantized, hessian)
    assert found["relative_error"] == pytest.approx(relative_error(weight, quantized, hessian), rel=1e-5)
    # One direction outweighs the others: errors of rows go like squares of normal numbers, three of 300 hold a tenth.
    assert 0.05 < found["error_share_few_rows"] < 0.15


@pytest.mark.parametrize("few", [True, False])
def test_an_error_in_few_directions_is_told_from_one_elsewhere(few: bool) -> None:
    weight, hessian = problem()
    _, vectors = torch.linalg.eigh(hessian.double())
    chosen = vectors[:, -2:] if few else vectors[:, :-2]  # a hundredth of 200 directions is two
    noise = torch.randn(OUT, IN, generator=generator(3, "error")).double() @ chosen @ chosen.T
    found = error_directions(weight, weight + noise.float(), hessian)
    assert found["error_share_few_directions"] == pytest.approx(1.0 if few else 0.0, abs=1e-5)
    assert (found["relative_error_few_directions"] > found["relative_error_other_directions"]) is few
    assert found["input_share_first_direction"] > 0.5


def test_an_error_in_few_rows_is_seen() -> None:
    weight, hessian = problem()
    quantized = weight.clone()
    quantized[7:10] += 1
    assert error_directions(weight, quantized, hessian)["error_share_few_rows"] == pytest.approx(1)
    assert set(error_directions(weight, weight, hessian).values()) == {
        0.0, error_directions(weight, weight, hessian)["input_share_first_direction"]
    }  # fmt: skip


def test_every_linear_of_every_run_is_measured(tiny_model: Callable[[str, bool], Path]) -> None:
    """Weights that represent the model's own to 1e-6 leave no error; weights of noise leave some everywhere."""
    folder = tiny_model("llama", True)
    weights = dict(load_model(folder, torch.float32, "cpu").named_parameters())
    names = [f"model.layers.{block}.{name}" for block in range(3) for name in linear_shapes(folder)]
    exact = {name: own_codebook(weights[f"{name}.weight"].detach()) for name in names}
    noisy = {
        name: AdditiveWeight(weight.codes, weight.codebooks + 0.01, weight.row_scales) for name, weight in exact.items()
    }
    runs = {
        Run("tiny", Geometry(1, 12, 4), init, 1, 1, 0): QuantizedState(linears)
        for init, linears in (("greedy", exact), ("oaem", noisy))
    }
    tokens = torch.randint(320, (4, 20), generator=generator(2, "tokens"), dtype=torch.int32)
    found = measure_directions(folder, runs, tokens, torch.float32, "cpu")
    errors = {(row.run.init, row.dataset, row.label): row.value for row in found if row.metric == "relative_error"}
    assert len(errors) == 2 * len(names)
    assert all(error < 1e-10 if init == "greedy" else error > 1e-6 for (init, *_), error in errors.items())


def own_codebook(weight: torch.Tensor) -> AdditiveWeight:
    """One codebook that holds every group of four weights."""
    groups = weight.float().unflatten(1, (-1, 4))
    count = groups.shape[0] * groups.shape[1]
    codes = torch.arange(count).view(*groups.shape[:2], 1)
    return AdditiveWeight(codes, groups.reshape(1, count, 4), torch.ones(len(weight)))
