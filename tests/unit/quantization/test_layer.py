from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from oaem.config.geometry import Geometry
from oaem.config.settings import CodebookSettings, KMeansSettings, LayerSettings
from oaem.errors import UserError
from oaem.quantization.layer import LayerResult, quantize_layer
from oaem.quantization.weight import output_error, relative_error

GEOMETRY = Geometry(2, 3, 4)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def layer(out: int = 30, columns: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(200, columns, generator=generator) + torch.randn(200, 1, generator=generator)
    return torch.randn(out, columns, generator=generator), inputs.T @ inputs / 200


def quantize(
    weight: Tensor, hessian: Tensor, init: str = "oaem", geometry: Geometry = GEOMETRY, **changed
) -> LayerResult:
    options = {"beam_width": 3, "max_epochs": 4, "settings": LayerSettings(), "seed": 5} | changed
    return quantize_layer(weight, hessian, geometry, init=init, **options)


@pytest.mark.parametrize("init", ["greedy", "oaem", "oaem_exact"])
@pytest.mark.parametrize("solver", ["adam", "cg"])
def test_the_objective_falls_every_epoch(init: str, solver: str) -> None:
    weight, hessian = layer()
    settings = LayerSettings(codebooks=CodebookSettings(solver=solver, steps=30))
    result = quantize(weight, hessian, init, settings=settings)
    assert result.losses == sorted(result.losses, reverse=True)
    assert len(result.losses) == result.epochs + 1
    dense = result.weight.dequantize()
    assert result.losses[-1] == pytest.approx(output_error(dense - weight, hessian) / 30, rel=1e-5)
    assert result.relative_error == pytest.approx(relative_error(weight, dense, hessian), rel=1e-6)


def test_stops_at_the_first_epoch_that_gains_less_than_the_tolerance() -> None:
    weight, hessian = layer()
    result = quantize(weight, hessian, max_epochs=60)
    ratios = [after / before for before, after in zip(result.losses, result.losses[1:], strict=False)]
    assert result.epochs < 60
    assert ratios[-1] > 0.99 and all(ratio <= 0.99 for ratio in ratios[:-1])


def test_no_update_follows_the_last_search() -> None:
    """A run that the limit cuts short has the codes and codebooks that the longer run had at that point."""
    weight, hessian = layer()
    short, longer = quantize(weight, hessian, max_epochs=2), quantize(weight, hessian, max_epochs=3)
    assert longer.losses[:3] == pytest.approx(short.losses, rel=1e-6)


def test_recovers_a_representable_weight_exactly() -> None:
    """One scalar a group and fewer values than entries: k-means alone is exact, and Adam adds one step at most.

    Adam turns a gradient of pure rounding noise into steps of its rate, 1e-4; the error is quadratic in them.
    """
    signs = torch.where(torch.rand(40, 24, generator=torch.Generator().manual_seed(1)) < 0.5, -1.0, 1.0)
    _, hessian = layer(columns=24)
    result = quantize(signs, hessian, "greedy", Geometry(1, 4, 2), settings=LayerSettings(kmeans=KMeansSettings()))
    assert result.losses[0] < 1e-11
    assert result.relative_error < 1e-4**2


def test_same_seed_same_bits_other_seed_others() -> None:
    weight, hessian = layer()
    first, second, third = (quantize(weight, hessian, seed=seed).weight for seed in (1, 1, 2))
    assert torch.equal(first.codes, second.codes) and torch.equal(first.codebooks, second.codebooks)
    assert torch.equal(first.row_scales, second.row_scales)
    assert not torch.equal(first.codes, third.codes)


@pytest.mark.parametrize("solver", ["adam", "cg"])
@pytest.mark.parametrize("init", ["greedy", "oaem", "oaem_exact"])
def test_degenerate_layers(init: str, solver: str) -> None:
    weight, hessian = layer()
    settings = LayerSettings(codebooks=CodebookSettings(solver=solver, steps=20))
    few = torch.randn(5, 48)
    blind = hessian.clone()
    blind[:8], blind[:, :8] = 0, 0
    zero_rows = weight.clone()
    zero_rows[[0, 7]] = 0
    cases = [
        (zero_rows, hessian), (weight, blind), (weight, few.T @ few / 5), (weight, torch.zeros(48, 48)),
        (torch.zeros(30, 48), hessian), (weight[:1], hessian),
    ]  # fmt: skip
    for degenerate_weight, degenerate_hessian in cases:
        result = quantize(degenerate_weight, degenerate_hessian, init, settings=settings, max_epochs=2)
        assert torch.isfinite(result.weight.dequantize()).all()
        assert 0 <= result.relative_error < 1


@pytest.mark.parametrize("culprit", ["weight", "hessian"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(culprit: str, bad: float) -> None:
    weight, hessian = layer()
    (weight if culprit == "weight" else hessian)[3, 4] = bad
    with pytest.raises(UserError, match=f"the {culprit} of a linear layer holds NaN or infinity"):
        quantize(weight, hessian)


def test_groups_must_divide_the_inputs() -> None:
    weight, hessian = layer()
    with pytest.raises(UserError, match="groups of 5 do not divide"):
        quantize(weight, hessian, geometry=Geometry(1, 3, 5))
    with pytest.raises(UserError, match="hessian of shape"):
        quantize(weight, hessian[:40, :40])


def test_phases_are_timed() -> None:
    seen: Counter[str] = Counter()

    class Clock:
        @contextmanager
        def phase(self, name: str) -> Iterator[None]:
            seen[name] += 1
            yield

    weight, hessian = layer()
    result = quantize(weight, hessian, max_epochs=2, clock=Clock())
    assert seen == {"kmeans": 2, "oaem": 2, "codebook_steps": result.epochs, "beam_search": result.epochs}


def test_bfloat16_weights_are_taken() -> None:
    weight, hessian = layer()
    assert quantize(weight.bfloat16(), hessian).weight.codebooks.dtype == torch.float32
