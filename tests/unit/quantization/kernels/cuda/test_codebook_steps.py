"""Codebook steps as a CUDA device takes them, through Triton's interpreter; direct calls stand in for recordings."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

pytest.importorskip("tests.unit.interpreter")

from oaem.config.settings import CodebookSettings
from oaem.quantization.codebook_steps import adam_steps, layer_optimizer
from oaem.quantization.kernels.cuda import codebook_steps as fast
from oaem.quantization.kernels.cuda.layer_loss import SplitLayerLoss
from oaem.quantization.kernels.cuda.recorded import Work
from tests.unit.quantization.toy_layers import toy_layer

STEPS = 4
SIZE = 16
SETTINGS = CodebookSettings(lr=1e-3)


class Replayed:
    """Stands in for a `Recording`, and counts."""

    made: list[Replayed]

    def __init__(self, work: Work) -> None:
        self.work, self.calls = work, 0
        self.made.append(self)

    def __call__(self) -> None:
        self.calls += 1
        self.work()


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[Replayed]:
    monkeypatch.setattr(Replayed, "made", [], raising=False)
    monkeypatch.setattr(fast, "Recording", Replayed)
    monkeypatch.setattr(fast, "_recorded", {})
    return Replayed.made


class Learner:
    """A toy layer with its optimiser, and new codes for every epoch."""

    def __init__(self, out: int = 3, columns: int = 24, settings: CodebookSettings = SETTINGS, shift: int = 0):
        self.weight, self.hessian, codes, self.codebooks, self.row_scales = toy_layer(out, columns, 2, 4, 8)
        self.codes = (codes + shift) % SIZE
        self.optimizer = layer_optimizer(self.codebooks, self.row_scales, settings)

    def epoch(self, take, steps: int = STEPS, accept=lambda loss: True) -> bool:
        """`steps` of `take`, which may be the plain loop; the loss is the kernels' in any case."""
        problem = SplitLayerLoss(self.weight, self.hessian, self.codes, SIZE)
        self.codes = (self.codes + 1) % SIZE
        return take(problem, self.codebooks, self.row_scales, self.optimizer, steps, accept)

    def tensors(self) -> list[Tensor]:
        """All that an epoch changes."""
        states = [self.optimizer.state[part] for part in (self.codebooks, self.row_scales)]
        return [self.codebooks, self.row_scales, *(state[name] for state in states for name in ("step", *fast.MOMENTS))]


def assert_same(ours: Learner, theirs: Learner) -> None:
    """Gradients are the same but for the order of float32 sums, so parameters agree to some thousandths of a step."""
    for found, expected in zip(ours.tensors(), theirs.tensors(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3 * SETTINGS.lr)


@pytest.mark.slow
@pytest.mark.parametrize("betas", [(0.0, 0.95), (0.9, 0.99)])
def test_two_layers_of_one_shape_in_turn_go_where_torchs_adam_goes(
    betas: tuple[float, float], made: list[Replayed]
) -> None:
    settings = SETTINGS.model_copy(update={"beta1": betas[0], "beta2": betas[1]})
    ours, theirs = ([Learner(settings=settings, shift=shift) for shift in (0, 5)] for _ in range(2))
    for _ in range(2):
        for found, expected in zip(ours, theirs, strict=True):
            assert found.epoch(fast.adam_steps_triton) and expected.epoch(adam_steps.plain)
    for found, expected in zip(ours, theirs, strict=True):
        assert_same(found, expected)
    assert not torch.equal(ours[0].codebooks, ours[1].codebooks)
    assert [recording.calls for recording in made] == [4]  # one shape, four epochs


def test_the_largest_second_moment_so_far_divides() -> None:
    """AMSGrad: large gradients at first keep later steps short, across epochs."""
    ours, theirs = (Learner(settings=SETTINGS.model_copy(update={"beta2": 0.5})) for _ in range(2))
    for learner, take in ((ours, fast.adam_steps_triton), (theirs, adam_steps.plain)):
        learner.hessian *= 100
        learner.epoch(take)
        learner.hessian /= 100
        learner.epoch(take)
    assert_same(ours, theirs)
    state = ours.optimizer.state[ours.codebooks]
    assert bool((state["max_exp_avg_sq"] > 4 * state["exp_avg_sq"]).any())


def test_the_plain_loop_and_the_fast_one_continue_each_other() -> None:
    ours, theirs = Learner(), Learner()
    for take in (adam_steps.plain, fast.adam_steps_triton, adam_steps.plain):
        ours.epoch(take)
        theirs.epoch(adam_steps.plain)
    assert_same(ours, theirs)


def test_a_refused_loss_changes_nothing() -> None:
    ours, undisturbed = Learner(), Learner()
    seen: list[float] = []

    def refuse(loss: float) -> bool:
        seen.append(loss)
        return False

    def read(loss: float) -> bool:
        seen.append(loss)
        return True

    ours.epoch(fast.adam_steps_triton)
    before = [tensor.clone() for tensor in ours.tensors()]
    codes = ours.codes
    assert not ours.epoch(fast.adam_steps_triton, accept=refuse)
    assert all(map(torch.equal, before, ours.tensors()))
    # Nor does it show in what comes after, neither here nor in another layer of the shape.
    ours.codes = codes
    ours.epoch(fast.adam_steps_triton, accept=read)
    for _ in range(2):
        undisturbed.epoch(fast.adam_steps_triton)
    assert all(map(torch.equal, ours.tensors(), undisturbed.tensors()))
    assert seen[0] == seen[1] > 0


def test_one_step_needs_no_recording(made: list[Replayed]) -> None:
    ours, theirs = Learner(), Learner()
    assert ours.epoch(fast.adam_steps_triton, steps=1) and theirs.epoch(adam_steps.plain, steps=1)
    assert_same(ours, theirs)
    assert [recording.calls for recording in made] == [0]


def test_a_large_layer_is_not_recorded_and_takes_the_same_steps(
    monkeypatch: pytest.MonkeyPatch, made: list[Replayed]
) -> None:
    recorded, direct = Learner(), Learner()
    recorded.epoch(fast.adam_steps_triton)
    monkeypatch.setattr(fast, "LARGEST_RECORDED", 3 * 24**2 - 1)
    direct.epoch(fast.adam_steps_triton)
    assert all(map(torch.equal, recorded.tensors(), direct.tensors()))
    assert len(made) == 1


def test_the_oldest_shape_gives_way(monkeypatch: pytest.MonkeyPatch, made: list[Replayed]) -> None:
    monkeypatch.setattr(fast, "SHAPES_KEPT", 2)
    for out in (3, 4, 3, 5, 4, 3):
        Learner(out).epoch(fast.adam_steps_triton, steps=2)
    assert [recording.calls for recording in made] == [2, 2, 1, 1]
    assert len(fast._recorded) == 2


def test_a_recording_keeps_nothing_of_the_callers() -> None:
    """What it replays reads and writes tensors of its own, so the layer's may go."""
    ours = Learner()
    ours.epoch(fast.adam_steps_triton)
    (epoch,) = fast._recorded.values()
    kept = epoch.problem
    own = {part.data_ptr() for part in (kept.weight, kept.codes, epoch.codebooks, epoch.row_scales)}
    assert not own & {part.data_ptr() for part in (ours.weight, ours.codes, ours.codebooks, ours.row_scales)}
    assert kept.hessian.numel() == 0
    places = [part.data_ptr() for part in (kept.weight, kept.stacked_hessian, kept.codes, kept.order.places)]
    Learner(shift=5).epoch(fast.adam_steps_triton)
    assert places == [part.data_ptr() for part in (kept.weight, kept.stacked_hessian, kept.codes, kept.order.places)]


def test_a_large_layers_matrices_go_with_its_epoch(made: list[Replayed], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the collector of cycles: those of a layer of 28672 inputs are five gigabytes an epoch."""
    monkeypatch.setattr(fast, "LARGEST_RECORDED", 0)
    problems = []

    def take(problem: SplitLayerLoss, *rest) -> bool:
        problems.append(weakref.ref(problem))
        return fast.adam_steps_triton(problem, *rest)

    learner = Learner()
    gc.collect()
    gc.disable()
    try:
        assert learner.epoch(take)
        assert [problem() for problem in problems] == [None]
    finally:
        gc.enable()
    assert not made
