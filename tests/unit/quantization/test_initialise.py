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
from oaem.quantization.initialise import initialise
from tests.unit.quantization.toy_layers import clustered


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


def test_output_aware_beats_greedy_in_its_own_metric() -> None:
    weight, hessian = layer()
    greedy, adam, exact = (block_loss(weight, hessian, name) for name in ("greedy", "oaem", "oaem_exact"))
    assert exact < adam < greedy


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
        EntryPoint("broken", "no_such_module:function", initialisations.ENTRY_POINTS),
    ]

    def installed(group: str, name: str | None = None) -> list[EntryPoint]:
        return [point for point in points if point.group == group and name in (None, point.name)]

    monkeypatch.setattr(initialisations, "entry_points", installed)
    weight, hessian = layer()
    assert (label_of("zeros"), label_of("greedy")) == ("zeros", BUILT_IN["greedy"].label)
    assert known_initialisations() == ["broken", "greedy", "oaem", "oaem_exact", "zeros"]
    assert not initialise("zeros", weight, hessian, Geometry(1, 3, 4), LayerSettings(), seed=1).dequantize().any()
    with pytest.raises(UserError, match="cannot be loaded"):
        initialise("broken", weight, hessian, Geometry(1, 3, 4), LayerSettings(), seed=1)
