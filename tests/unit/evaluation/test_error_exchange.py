"""Parts of errors exchanged: what a part is, held to sums over single eigenvectors, and to models that must agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oaem.calibration.artefacts import QuantizedState, dense_weight
from oaem.config.geometry import Geometry
from oaem.config.grid import Run
from oaem.corpora.tokens import write_tokens
from oaem.evaluation.directions import error_directions
from oaem.evaluation.error_exchange import (
    PARTS,
    UNQUANTISED,
    exchanged_in,
    layer_errors,
    measure_error_exchange,
    resized,
)
from oaem.models.load import linear_shapes, load_model
from oaem.quantization.weight import relative_error
from oaem.runtime.seeds import generator
from tests.unit.evaluation.test_directions import own_codebook, problem


def noisy(weight: torch.Tensor, name: str) -> torch.Tensor:
    return weight + 0.1 * torch.randn(weight.shape, generator=generator(5, name))


def test_an_exchanged_weight_has_either_error_where_it_should() -> None:
    """By sums over single eigenvectors, to 1e-4: the projection is in float32."""
    weight, hessian = problem()
    own, given = noisy(weight, "own"), noisy(weight, "given")
    _, vectors = torch.linalg.eigh(hessian.double())
    few = vectors[:, -2:].float()
    mixed = exchanged_in(own, given, few)
    for index in (0, 50, 197, 198, 199):
        source = given if index >= 198 else own
        one, other = ((each - weight).double() @ vectors[:, index] for each in (mixed, source))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    found = [error_directions(weight, each, hessian) for each in (mixed, given, own)]
    assert found[0]["relative_error_few_directions"] == pytest.approx(found[1]["relative_error_few_directions"], 1e-4)
    assert found[0]["relative_error_other_directions"] == pytest.approx(
        found[2]["relative_error_other_directions"], 1e-4
    )


def test_a_resized_error_has_the_wanted_size() -> None:
    """To 1e-5: the layer's own error is computed in float32."""
    weight, hessian = problem()
    own = noisy(weight, "own")
    size = relative_error(weight, own, hessian)
    changed = resized(own, weight, size, 0.37 * size)
    assert relative_error(weight, changed, hessian) == pytest.approx(0.37 * size, rel=1e-5)
    assert torch.equal(resized(weight, weight, 0.0, 0.3), weight), "no error cannot be made larger"


def test_parts_of_a_pair_of_models(tiny_model: Callable[[str, bool], Path], tmp_path: Path) -> None:
    """One's few directions in the other is the other's many in the one; without blocks' other tensors changed."""
    folder = tiny_model("llama", True)
    original = dict(load_model(folder, torch.float32, "cpu").named_parameters())
    names = [f"model.layers.{block}.{name}" for block in range(3) for name in linear_shapes(folder)]
    runs = {init: Run("tiny", Geometry(1, 12, 4), init, 1, 1, 0) for init in ("oaem", "greedy")}
    states = {
        run: QuantizedState(
            {name: own_codebook(noisy(original[f"{name}.weight"].detach(), name + init)) for name in names}
        )
        for init, run in runs.items()
    }
    tokens = torch.randint(320, (4, 40), generator=generator(2, "tokens"), dtype=torch.int32)
    write_tokens(tmp_path / "eval-text.safetensors", tokens[:2], {})
    layers = layer_errors(folder, states, tokens, torch.float32, "cpu")
    assert set(layers) == {f"{name}.weight" for name in names}
    found = measure_error_exchange(
        folder,
        states,
        layers,
        {"text": {"role": "far", "label": "Text"}},
        [tmp_path / "eval-text.safetensors"],
        2,
        torch.float32,
        "cpu",
    )
    value = {
        (row.run.init, *(row.protocol["exchanged"][key] for key in ("part", "from"))): row.value
        for row in found
        if row.run is not None
    }
    assert len(found) == len(value) == 2 * (2 * len(PARTS) - 1)
    for one, other in (("oaem", "greedy"), ("greedy", "oaem")):
        # In float32 but for the projections: to 1e-4.
        assert value[one, "few directions", other] == pytest.approx(value[other, "other directions", one], rel=1e-4)
    assert len({round(each, 4) for each in value.values()}) == len(value) - 2
    assert {giver for _, _, giver in value} == {"oaem", "greedy", UNQUANTISED}
    # What is measured for a size is the model with each error scaled by hand.
    by_hand = load_model(folder, torch.float32, "cpu")
    with torch.no_grad():
        for name in names:
            own = dense_weight(states[runs["greedy"]].linears[name], "cpu")
            sizes = layers[f"{name}.weight"].sizes
            scale = (sizes["oaem"] / sizes["greedy"]) ** 0.5
            plain = original[f"{name}.weight"]
            by_hand.get_parameter(f"{name}.weight").copy_(plain + scale * (own - plain))
        windows = tokens[:2].long()
        logits = by_hand(windows).logits.log_softmax(-1)[:, :-1]
    loss = -logits.gather(-1, windows[:, 1:, None]).mean()
    assert value["greedy", "size", "oaem"] == pytest.approx(loss.exp().item(), rel=1e-5)
