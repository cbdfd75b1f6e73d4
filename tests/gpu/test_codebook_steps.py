"""Codebook steps recorded on a CUDA device against the same launched one by one, and against the plain loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from oaem.config.geometry import Geometry
from oaem.config.settings import CodebookSettings, LayerSettings
from oaem.numerics.fast_paths import plain_paths
from oaem.quantization.codebook_steps import adam_steps, layer_optimizer
from oaem.quantization.layer import LayerResult, quantize_layer
from oaem.quantization.layer_loss import layer_loss
from tests.unit.quantization.toy_layers import toy_layer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = [(192, 576), (96, 512), (33, 240)]
SIZE = 256
STEPS = 20


@pytest.fixture(autouse=True)
def _nothing_recorded() -> Iterator[None]:
    """As in a new process."""
    from oaem.quantization.kernels.cuda.codebook_steps import _recorded

    _recorded.clear()
    yield
    _recorded.clear()


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oaem.quantization.kernels.cuda.codebook_steps.LARGEST_RECORDED", 0)


class Learner:
    """A toy layer with its optimiser, and new codes for every epoch."""

    def __init__(self, shape: tuple[int, int], shift: int = 0):
        self.weight, self.hessian, codes, self.codebooks, self.row_scales = toy_layer(*shape, 2, 8, 8, device="cuda")
        self.codes = (codes + shift) % SIZE
        self.optimizer = layer_optimizer(self.codebooks, self.row_scales, CodebookSettings(lr=1e-3))

    def epoch(self, accept=lambda loss: True) -> bool:
        problem = layer_loss(self.weight, self.hessian, self.codes, SIZE)
        self.codes = (self.codes + 1) % SIZE
        return adam_steps(problem, self.codebooks, self.row_scales, self.optimizer, STEPS, accept)

    def tensors(self) -> list[Tensor]:
        states = [self.optimizer.state[part] for part in (self.codebooks, self.row_scales)]
        return [self.codebooks, self.row_scales, *(value for state in states for value in state.values())]


def trained(shape: tuple[int, int], shift: int = 0, epochs: int = 3) -> list[Tensor]:
    learner = Learner(shape, shift)
    for _ in range(epochs):
        assert learner.epoch()
    return learner.tensors()


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_recording_gives_the_bits_of_its_launches(shape: tuple[int, int], request: pytest.FixtureRequest) -> None:
    recorded = trained(shape)
    request.getfixturevalue("one_by_one")
    assert_same_bits(recorded, trained(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_goes_where_the_plain_loop_goes(shape: tuple[int, int]) -> None:
    """To a hundredth of a step on average: a gradient near zero may turn in float32, and Adam's step with it."""
    found = trained(shape)
    with plain_paths(adam_steps):
        expected = trained(shape)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert float((ours - theirs).abs().mean()) < 0.01 * 1e-3


def test_layers_of_one_shape_in_turn_do_not_meet() -> None:
    shape = SHAPES[0]
    alone = [trained(shape, shift) for shift in (0, 7)]
    learners = [Learner(shape, shift) for shift in (0, 7)]
    for _ in range(3):
        for learner in learners:
            learner.epoch()
        # What a recording wrongly kept of a layer that is gone would be overwritten by now.
        torch.full((64, 2**20), torch.nan, device="cuda")
    for learner, expected in zip(learners, alone, strict=True):
        assert_same_bits(learner.tensors(), expected)


def test_a_refused_loss_changes_nothing() -> None:
    learner = Learner(SHAPES[0])
    learner.epoch()
    before = [tensor.clone() for tensor in learner.tensors()]
    codes = learner.codes
    assert not learner.epoch(accept=lambda loss: False)
    assert_same_bits(learner.tensors(), before)
    learner.codes = codes
    learner.epoch()
    learner.epoch()
    assert_same_bits(learner.tensors(), trained(SHAPES[0]))


def test_a_shape_that_gave_way_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [trained(shape) for shape in SHAPES]
    monkeypatch.setattr("oaem.quantization.kernels.cuda.codebook_steps.SHAPES_KEPT", 1)
    for _ in range(2):
        for shape, tensors in zip(SHAPES, expected, strict=True):
            assert_same_bits(trained(shape), tensors)


def test_a_layer_has_the_same_bits_whatever_the_process_did_before() -> None:
    """A run that was interrupted takes up a layer in a new process, where nothing is recorded."""
    from oaem.quantization.kernels.cuda.codebook_steps import _recorded

    settings = LayerSettings(codebooks=CodebookSettings(steps=STEPS))

    def quantised(seed: int) -> LayerResult:
        weight, hessian, *_ = toy_layer(*SHAPES[0], 2, 8, 8, device="cuda")
        weight = weight.roll(seed, 0)
        options = {"init": "oaem", "beam_width": 4, "max_epochs": 4, "settings": settings, "seed": seed}
        return quantize_layer(weight, hessian, Geometry(2, 8, 8), **options)

    _, second = quantised(1), quantised(2)
    _recorded.clear()
    again = quantised(2)
    assert second.losses == again.losses and second.epochs > 1
    for name in ("codes", "codebooks", "row_scales"):
        assert torch.equal(getattr(second.weight, name), getattr(again.weight, name))
