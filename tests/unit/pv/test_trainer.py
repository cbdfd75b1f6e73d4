from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from oaem.calibration.artefacts import load_state
from oaem.errors import UserError
from oaem.pv import outcomes, plan, resume, trainer
from oaem.pv.optimizer import PVOptimizer
from oaem.pv.plan import Placement
from oaem.pv.trainer import tune
from tests.unit.pv import toy as pv_toy
from tests.unit.pv.toy import Stop, make_job, make_model, make_state, make_tokens, run_toy, toy_perplexity

STEPS = 9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted tuning."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_toy(model, folder)


def outcome_bytes(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in outcomes.OUTCOMES}


def assert_same(folder: Path, result: dict[str, Any], whole: tuple[Path, dict[str, Any]]) -> None:
    assert outcome_bytes(folder) == outcome_bytes(whole[0])
    assert {**result, "seconds": 0} == {**whole[1], "seconds": 0}
    assert not (folder / "resume").exists() and not (folder / "epochs").exists()


def dies_after(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, calls: int) -> None:
    """Let `target.name` raise Stop instead of running for the call number `calls`."""
    original, seen = getattr(target, name), []

    def dying(*arguments: Any, **named: Any) -> Any:
        seen.append(name)
        if len(seen) == calls:
            raise Stop
        return original(*arguments, **named)

    monkeypatch.setattr(target, name, dying)


def test_lowers_the_loss_and_reports_every_epoch(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, result = whole
    assert len(result["losses"]) == result["steps"] == STEPS
    assert [record["epoch"] for record in result["epochs"]] == [1, 2, 3]
    assert result["epochs"][2]["loss"] < result["epochs"][0]["loss"]
    assert result["outcomes"]["last"] == 3
    for kind in ("test", "validation"):
        best = min(result["epochs"], key=lambda record: record[kind])
        assert result["outcomes"][f"best_{kind}"] == best["epoch"]
    for name, digest in result["sha256"].items():
        assert outcomes.checksum(folder / f"{name}.safetensors") == digest


def test_the_outcomes_are_tuned_in_every_layer(model: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    before = make_state(model)
    for name in outcomes.OUTCOMES:
        after, metadata = load_state(whole[0] / f"{name}.safetensors")
        assert metadata["epoch"] == whole[1]["outcomes"][name]
        assert set(after.linears) == set(before.linears)
        for linear, weight in before.linears.items():
            assert not torch.equal(weight.codebooks, after.linears[linear].codebooks), linear
        assert outcomes.share_of_changed_codes(before, after) == metadata["codes_changed"] > 0


def test_an_untouched_layer_is_a_fault(model: Path) -> None:
    state = make_state(model)
    with pytest.raises(RuntimeError, match=r"left model\.layers\.0"):
        outcomes.share_of_changed_codes(state, state)


def test_every_sequence_has_its_turn_and_none_twice_an_epoch(model: Path, tmp_path: Path) -> None:
    job = make_job(model)
    run = trainer._Tuning(job, Placement(), make_state(model), make_tokens(), tmp_path, "identity", lambda line: None)
    epochs = [[index for step in range(first, first + 3) for index in run._batch(step)] for first in range(1, 31, 3)]
    assert all(len(epoch) == len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10
    assert set().union(*epochs) == set(range(11))


def test_sequences_of_a_batch_go_together_or_one_by_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same loss and gradients, up to the order of float32 sums: 1e-6, and 1e-4 of a gradient's largest entry."""
    found = []
    for tokens_at_once in (1024, 2 * pv_toy.WINDOW, 1):
        monkeypatch.setitem(plan.TOKENS_AT_ONCE, "cpu", tokens_at_once)
        job = make_job(model)
        run = trainer._Tuning(job, Placement(), make_state(model), make_tokens(), tmp_path, "x", lambda line: None)
        run.optimizer.step = lambda step: 0  # type: ignore[method-assign, assignment]
        loss = run._step(1)
        gradients = [linear.weight_gradient for linear in run.student.linears.values()]
        found.append((loss, [*gradients, *(parameter.grad for parameter in run.student.parameters.values())]))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        for gradient, reference in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-4 * float(reference.abs().max()))


def test_float16_is_tuned_in_bfloat16(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "_identity", lambda job, state, tokens: str(job.compute_dtype))
    job = trainer.PVJob(**{**vars(make_job(model, epochs=1)), "compute_dtype": torch.float16})
    measures = toy_perplexity(2), toy_perplexity(3)
    assert tune(job, make_state(model), make_tokens(), tmp_path, *measures)["fingerprint"] == "torch.bfloat16"


@pytest.mark.parametrize(
    "placement", [None, Placement("memory"), Placement("disk", offload_buffers=True), Placement("live", True, True)]
)
def test_the_placement_changes_no_bit(
    model: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, placement: Placement | None
) -> None:
    assert_same(tmp_path, run_toy(model, tmp_path, placement), whole)
    assert not (tmp_path / "teacher.cache").exists()


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_stopped_in_any_step_it_goes_on_to_the_same_bytes(
    model: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, step: int
) -> None:
    with monkeypatched() as patch:
        dies_after(patch, PVOptimizer, "step", step)
        with pytest.raises(Stop):
            run_toy(model, tmp_path)
    lines: list[str] = []
    job = make_job(model)
    result = tune(job, make_state(model), make_tokens(), tmp_path, toy_perplexity(2), toy_perplexity(3), lines.append)
    assert_same(tmp_path, result, whole)
    if step > 2:
        saved = max(n for n in (2, 4, 6, 8) if n < step)
        assert f"PV-tuning: going on after step {saved} of 9" in lines


@pytest.mark.parametrize(
    ("target", "name", "call"),
    [
        *[(resume, "save_file", 3), (resume, "save_file", 9), (resume, "write_json", 2), (resume.shutil, "rmtree", 2)],
        *[(trainer, "save_state", 2), (outcomes, "drop_unchosen", 3)],
        *[(outcomes.shutil, "copyfile", 2), (outcomes, "write_json", 1)],
    ],
)
def test_stopped_while_it_saves_it_goes_on_to_the_same_bytes(
    model: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, target: Any, name: str, call: int
) -> None:
    with monkeypatched() as patch:
        dies_after(patch, target, name, call)
        with pytest.raises(Stop):
            run_toy(model, tmp_path)
    assert_same(tmp_path, run_toy(model, tmp_path), whole)


def monkeypatched() -> Any:
    return pytest.MonkeyPatch.context()


@pytest.mark.slow
def test_killed_for_real_it_goes_on_to_the_same_bytes(
    model: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """SIGKILL in the middle of a random step, then in the middle of a later save, then to the end."""
    step = random.Random(os.getpid()).randint(1, STEPS)  # a new step every time: all of them must do
    command = [sys.executable, "-m", "tests.unit.pv.toy", str(model), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for death in (["kill-step", str(step)], ["kill-save", "2"]):
        done = subprocess.run([*command, *death], env=environment, capture_output=True, timeout=120)
        if death[0] == "kill-step" or step < STEPS:  # after step 9 nothing is left to save
            assert done.returncode == -9, (step, done.stderr.decode())
    assert_same(tmp_path, run_toy(model, tmp_path), whole)


def test_a_finished_tuning_is_not_done_again(
    model: Path, whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_Tuning", None)
    assert run_toy(model, whole[0]) == whole[1]


def test_a_damaged_outcome_is_made_again(model: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "last.safetensors").write_bytes(b"damaged")
    assert_same(tmp_path, run_toy(model, tmp_path), whole)


def _stopped(model: Path, folder: Path, step: int = 6, **changes: Any) -> None:
    with monkeypatched() as patch:
        dies_after(patch, PVOptimizer, "step", step)
        with pytest.raises(Stop):
            run_toy(model, folder, **changes)


def test_a_state_of_other_settings_is_not_used(
    model: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _stopped(model, tmp_path, lr=1e-3)
    assert_same(tmp_path, run_toy(model, tmp_path), whole)
    assert "made with other settings" in caplog.text


def test_a_stale_state_stays_until_it_is_replaced(model: Path, tmp_path: Path) -> None:
    _stopped(model, tmp_path, step=6, lr=1e-3)
    _stopped(model, tmp_path, step=2)
    assert [path.name[:11] for path in (tmp_path / "resume").iterdir()] == ["step-000004"]
    _stopped(model, tmp_path, step=3)
    assert [path.name[:11] for path in (tmp_path / "resume").iterdir()] == ["step-000002"]


def test_how_often_it_saves_changes_nothing(model: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _stopped(model, tmp_path, step=8, save_every=1)
    result = run_toy(model, tmp_path, save_every=5, gradient_checkpointing=False)
    assert_same(tmp_path, result, whole)


@pytest.mark.parametrize("what", ["tokens", "state", "seed"])
def test_other_inputs_are_another_tuning(model: Path, what: str) -> None:
    job, state, tokens = make_job(model), make_state(model), make_tokens()
    before = trainer._identity(job, state, tokens)
    assert before == trainer._identity(make_job(model, save_every=7), make_state(model), make_tokens())
    if what == "tokens":
        tokens[0, 0] += 1
    elif what == "state":
        next(iter(state.linears.values())).codes[0, 0, 0] ^= 1
    else:
        job = trainer.PVJob(**{**vars(job), "seed": 8})
    assert trainer._identity(job, state, tokens) != before


@pytest.mark.parametrize("damage", [lambda raw: raw[:50], lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), None])
def test_damaged_states_are_named(model: Path, tmp_path: Path, damage: Callable[[bytes], bytes] | None) -> None:
    _stopped(model, tmp_path)
    file = next((tmp_path / "resume").glob("step-*/0001.safetensors"))
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"resume/step-[0-9a-f-]+: damaged .* delete this folder"):
        run_toy(model, tmp_path)


def test_a_lost_epoch_starts_it_again(
    model: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _stopped(model, tmp_path)
    shutil.rmtree(tmp_path / "epochs")
    assert_same(tmp_path, run_toy(model, tmp_path), whole)
    assert "tuning starts again" in caplog.text


def test_a_loss_that_is_no_number_stops_it_and_deletes_nothing(
    model: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.backward_kl
    calls: list[int] = []

    def overflowing(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return original(*arguments) * (math.nan if len(calls) == 5 else 1.0)  # one call a step

    monkeypatch.setattr(trainer, "backward_kl", overflowing)
    with pytest.raises(UserError, match=r"step 5 of 9: loss nan.*Lower pv.lr"):
        run_toy(model, tmp_path)
    monkeypatch.undo()
    assert [path.name[:11] for path in (tmp_path / "resume").iterdir()] == ["step-000004"]
    assert_same(tmp_path, run_toy(model, tmp_path), whole)


def test_a_gradient_that_is_no_number_stops_it(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = trainer._Tuning._backward

    def poisoned(self: Any, index: int) -> torch.Tensor:
        loss = original(self, index)
        next(iter(self.student.linears.values())).weight_gradient[0, 0] = math.inf
        return loss

    monkeypatch.setattr(trainer._Tuning, "_backward", poisoned)
    with pytest.raises(UserError, match=r"step 1 of 9: loss [0-9.]+, gradient norm inf"):
        run_toy(model, tmp_path)


def test_a_perplexity_that_is_no_number_stops_it(model: Path, tmp_path: Path) -> None:
    def tuned(test: Callable[[Any], float]) -> None:
        tune(make_job(model), make_state(model), make_tokens(), tmp_path, test, toy_perplexity(3), lambda line: None)

    with pytest.raises(UserError, match="end of epoch 1: perplexity on the test set is nan"):
        tuned(lambda model: math.nan)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 24, dtype=torch.long), "batch_size: 3 sequences a step, but the PV text makes only 2"),
        (torch.full((5, 24), 97), "values from 97 to 97"),
        (torch.zeros(5, 24), "expected whole numbers"),
        (torch.zeros(24, dtype=torch.long), "expected whole numbers"),
    ],
)
def test_tokens_that_do_not_suit_are_refused(model: Path, tmp_path: Path, tokens: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tune(make_job(model), make_state(model), tokens, tmp_path, toy_perplexity(2), toy_perplexity(3))
