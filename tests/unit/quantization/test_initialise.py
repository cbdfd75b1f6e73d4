"""Initialisations by name, codebook after codebook, and those of other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor

from oaem.config.geometry import Geometry
from oaem.config.settings import LayerSettings
from oaem.errors import UserError
from oaem.quantization import initialisations
from oaem.quantization.initialisations import BUILT_IN, known_initialisations, label_of
from oaem.quantization.initialise import initialise, squared_scale_weights
from oaem.quantization.oaem import hessian_blocks
from oaem.quantization.weight import normalised_groups, output_error, row_scales_of
from tests.unit.quantization.toy_layers import clustered, clustering_loss


def layer() -> tuple[Tensor, Tensor]:
    vectors, blocks, _, _ = clustered(out=60, dtype=torch.float32)
    weight = vectors.transpose(0, 1).flatten(1)
    return weight, torch.block_diag(*blocks)


def block_loss(weight: Tensor, hessian: Tensor, name: str) -> float:
    """The damped block loss of what `name` gives with two codebooks, in row-normalised space."""
    result = initialise(name, weight, hessian, Geometry(2, 3, 4), LayerSettings(), seed=3)
    difference = (result.dequantize() - weight) / result.row_scales[:, None]
    return float(((difference @ hessian) * difference).sum())


def freeze(vectors, blocks, centroids, codes, settings):
    """A plug-in's refinement, found by the test below."""
    return torch.zeros_like(centroids), codes


def weigh(vectors, blocks, centroids, codes, settings, row_weights=None):
    """Another one's, which weighs rows: what it was given of them becomes its codebook."""
    return torch.full_like(centroids, 0 if row_weights is None else float(row_weights.sum())), codes


def test_output_aware_beats_greedy_in_its_own_metric() -> None:
    weight, hessian = layer()
    greedy, adam, exact = (block_loss(weight, hessian, name) for name in ("greedy", "oaem", "oaem_exact"))
    assert exact < adam < greedy


def uneven_layer() -> tuple[Tensor, Tensor]:
    """Rows that differ in length a hundredfold, one of them all zeros; the hessian has diagonal blocks alone."""
    weight, hessian = layer()
    weight = weight * torch.logspace(-1, 1, len(weight))[:, None]
    weight[7] = 0
    return weight, hessian


def test_the_weighted_loss_is_the_output_error_of_diagonal_blocks() -> None:
    """By definition, in float64, 1e-9: but for a constant factor, and with k-means under H = I the weights' error."""
    weight, hessian = (part.double() for part in uneven_layer())
    row_scales = row_scales_of(weight)
    vectors = normalised_groups(weight, row_scales, 4).transpose(0, 1)
    centroids, codes = torch.randn(8, 4, dtype=torch.float64), torch.randint(0, 8, vectors.shape[:2])
    quantized = centroids[codes].transpose(0, 1).flatten(1) * row_scales[:, None]
    factor = row_scales.square().mean() * codes.numel()
    for measure in (hessian, torch.eye(len(hessian), dtype=torch.float64)):
        blocks = hessian_blocks(measure, 4, 0)
        loss = clustering_loss(vectors, blocks, centroids, codes, squared_scale_weights(row_scales)) * factor
        assert output_error(quantized - weight, measure) == pytest.approx(float(loss), rel=1e-9)


@pytest.mark.parametrize("name", ["greedy", "oaem", "oaem_exact"])
def test_rows_by_their_squared_scale_lower_the_error_in_true_scale(name: str) -> None:
    """Each in its own measure: the squared error of the weights, or the output error."""
    weight, hessian = uneven_layer()
    weighing = {"row_weights": "squared_scale"}
    weighted = LayerSettings.model_validate({"kmeans": weighing, "oaem": {**weighing, "lr": 0.03, "final_lr": 0.003}})
    uniform = LayerSettings.model_validate({"oaem": {"lr": 0.03, "final_lr": 0.003}})
    measure = torch.eye(len(hessian)) if name == "greedy" else hessian
    errors = []
    for settings in (uniform, weighted):
        found = initialise(name, weight, hessian, Geometry(2, 3, 4), settings, seed=3).dequantize()
        assert torch.isfinite(found).all()
        errors.append(output_error(found - weight, measure))
    assert errors[1] < 0.9 * errors[0]


def test_each_setting_weighs_its_own_step() -> None:
    weight, hessian = uneven_layer()
    of_oaem = LayerSettings.model_validate({"oaem": {"row_weights": "squared_scale"}})
    greedy, unmoved = (
        initialise("greedy", weight, hessian, Geometry(2, 3, 4), settings, seed=3)
        for settings in (LayerSettings(), of_oaem)
    )
    assert torch.equal(greedy.codebooks, unmoved.codebooks), "greedy has no M-step"
    plain, weighted = (
        initialise("oaem", weight, hessian, Geometry(1, 3, 4), settings, seed=3)
        for settings in (LayerSettings(), of_oaem)
    )
    assert not torch.equal(plain.codebooks, weighted.codebooks)


def test_second_codebook_is_fitted_to_the_residual_of_the_first() -> None:
    weight, hessian = layer()
    one = initialise("greedy", weight, hessian, Geometry(1, 3, 4), LayerSettings(), seed=1)
    two = initialise("greedy", weight, hessian, Geometry(2, 3, 4), LayerSettings(), seed=1)
    assert torch.equal(one.codebooks[0], two.codebooks[0]) and torch.equal(one.codes[..., 0], two.codes[..., 0])
    assert (two.dequantize() - weight).norm() < (one.dequantize() - weight).norm()
    assert two.codes.shape == (60, 6, 2) and two.codebooks.shape == (2, 8, 4)


def test_unknown_initialisation_names_the_known_ones() -> None:
    weight, hessian = layer()
    with pytest.raises(UserError, match="greedy, oaem, oaem_exact"):
        initialise("random", weight, hessian, Geometry(1, 3, 4), LayerSettings(), seed=1)


def test_plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("zeros", f"{__name__}:freeze", initialisations.ENTRY_POINTS),
        EntryPoint("weighing", f"{__name__}:weigh", initialisations.ENTRY_POINTS),
        EntryPoint("broken", "no_such_module:function", initialisations.ENTRY_POINTS),
    ]

    def installed(group: str, name: str | None = None) -> list[EntryPoint]:
        return [point for point in points if point.group == group and name in (None, point.name)]

    monkeypatch.setattr(initialisations, "entry_points", installed)
    weight, hessian = layer()
    assert (label_of("zeros"), label_of("greedy")) == ("zeros", BUILT_IN["greedy"].label)
    assert known_initialisations() == ["broken", "greedy", "oaem", "oaem_exact", "weighing", "zeros"]
    assert not initialise("zeros", weight, hessian, Geometry(1, 3, 4), LayerSettings(), seed=1).dequantize().any()
    weighted = LayerSettings.model_validate({"oaem": {"row_weights": "squared_scale"}})
    for settings, total in ((LayerSettings(), 0), (weighted, 60)):
        given = initialise("weighing", weight, hessian, Geometry(1, 3, 4), settings, seed=1).codebooks
        torch.testing.assert_close(given, torch.full_like(given, total))
        initialise("zeros", weight, hessian, Geometry(1, 3, 4), settings, seed=1)
    with pytest.raises(UserError, match="cannot be loaded"):
        initialise("broken", weight, hessian, Geometry(1, 3, 4), LayerSettings(), seed=1)
