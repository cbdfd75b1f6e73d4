"""What comes from the unquantised model, inputs or targets: plain loops, the stream's bytes, blocks in any order."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oaem.calibration import sequential
from oaem.calibration import stream as streams
from oaem.calibration.activations import activations_path, read_activations
from oaem.calibration.artefacts import load_block_state
from oaem.calibration.sequential import SequentialJob, quantize_range, replace_linear
from oaem.calibration.stream import Stream, make_stream
from oaem.config.geometry import Geometry
from oaem.config.grid import Run
from oaem.config.settings import BlockTuningSettings, KMeansSettings, LayerSettings, OaemSettings
from oaem.errors import UserError
from oaem.models.attention import use_fast_attention
from oaem.models.families import family_of
from oaem.models.load import embed_tokens, load_config, load_model
from oaem.quantization.block_tuning import tune_block
from oaem.quantization.hessian import HessianAccumulator
from oaem.quantization.layer import quantize_layer
from oaem.runtime.provenance import checksum
from oaem.runtime.seeds import derive, generator

BLOCKS, SEQUENCES, WINDOW = 3, 5, 20
RUN = Run("tiny", Geometry(2, 4, 4), "oaem", 2, 2, 42)
TUNING = BlockTuningSettings(epochs=2, lr=1e-3)
TO_THE_MODEL = BlockTuningSettings(epochs=2, lr=1e-3, targets="unquantized_model")
LAYER = LayerSettings(kmeans=KMeansSettings(iterations=5), oaem=OaemSettings(rounds=1, steps=5))
TOKENS = torch.randint(320, (SEQUENCES, WINDOW), generator=generator(1, "tokens"), dtype=torch.int32)


@dataclass
class Case:
    """A tiny model with its stream in `folder`, and jobs on it."""

    model: Path
    folder: Path
    tuning: BlockTuningSettings = TUNING

    @property
    def stream(self) -> Stream:
        sums = make_stream(self.model, TOKENS, self.folder / "stream", "made", "cpu")
        return Stream(self.folder / "stream", "made", "torch.float32", sums)

    def job(self, **changed: Any) -> SequentialJob:
        family = family_of(load_config(self.model))
        job = SequentialJob(RUN, self.model, family, LAYER, self.tuning, torch.float32, "cpu", "f", {}, self.stream)
        return replace(job, **changed)

    def quantise(self, job: SequentialJob, ranges: list[tuple[int, int]], name: str) -> dict[str, str]:
        """The checksums of all blocks after the ranges were done one by one, in that order."""
        place = self.folder / name
        for start, stop in ranges:
            quantize_range(job, TOKENS, start, stop, place / "blocks", place / "activations")
        return {path.name: checksum(path) for path in sorted((place / "blocks").glob("*.safetensors"))}


@pytest.fixture
def case(tiny_llama: Path, tmp_path: Path) -> Case:
    return Case(tiny_llama, tmp_path)


@torch.no_grad()
def inputs_by_hooks(model: Any) -> list[Tensor]:
    """What each block of the whole unquantised model is called with, sequence by sequence, and the last's outputs."""
    seen: list[list[Tensor]] = [[] for _ in range(BLOCKS + 1)]
    for index, block in enumerate(model.model.layers):
        block.register_forward_pre_hook(lambda _, args, at=index: seen[at].append(args[0]))
    model.model.layers[-1].register_forward_hook(
        lambda _, args, output: seen[-1].append(output[0] if isinstance(output, tuple) else output)
    )
    for sequence in TOKENS.split(1):
        model(sequence.long(), use_cache=False)
    return [torch.cat(pieces) for pieces in seen]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_stream_is_what_the_models_own_forward_hands_to_its_blocks(
    tiny_model: Callable[[str, bool], Path], tmp_path: Path, family: str
) -> None:
    case = Case(tiny_model(family, True), tmp_path)
    stream = case.stream
    expected = inputs_by_hooks(load_model(case.model, torch.float32, "cpu"))
    assert torch.equal(stream.inputs(0), expected[0])
    for index in range(1, BLOCKS):
        # Another batch size and another attention: float32 sums in another order.
        torch.testing.assert_close(stream.inputs(index), expected[index], rtol=1e-5, atol=1e-5)


def oracle(
    case: Case, index: int, hidden: Tensor, targets: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Block `index` as a plain loop: the whole block for every group, nothing kept, nothing shared.

    hidden: the block's inputs. targets: of all groups; the unquantised block's outputs for these inputs, if None.
    Returns every tensor of the quantised and tuned block, its outputs, and the unquantised block's.
    """
    whole = load_model(case.model, torch.float32, "cpu")
    block: nn.Module = whole.model.layers[index]
    use_fast_attention(block)
    positions = torch.arange(WINDOW)[None]
    arguments = {"position_embeddings": whole.model.rotary_emb(hidden, positions), "attention_mask": None}

    def forward() -> Tensor:
        with torch.no_grad():
            output = block(hidden, **arguments)
        return output[0] if isinstance(output, tuple) else output

    unquantised = forward()
    for number, group in enumerate(family_of(load_config(case.model)).sequential_groups):
        seen: dict[str, Tensor] = {}
        hooks = [
            block.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name, seen=seen: seen.update({name: args[0]})
            )
            for name in group
        ]
        forward()
        for hook in hooks:
            hook.remove()
        for name in group:
            total = HessianAccumulator(seen[name].shape[-1])
            total.update(seen[name])
            weight = block.get_submodule(name).weight.detach()
            result = quantize_layer(
                weight, total.finish(), RUN.geometry, init=RUN.init, beam_width=RUN.beam_width,
                max_epochs=RUN.max_epochs, settings=LAYER, seed=derive(RUN.seed, index, name),
            )  # fmt: skip
            replace_linear(block, name, result.weight, torch.float32)
        seed = derive(RUN.seed, "block_tuning", index, number)
        tune_block(block, hidden, unquantised if targets is None else targets, arguments, case.tuning, seed)
    return {name: tensor.detach() for name, tensor in block.state_dict().items()}, forward(), unquantised


def assert_block_equals(folder: Path, index: int, expected: dict[str, Tensor]) -> None:
    """Block `index` of the run in `folder` holds these tensors, to the bit, and no others."""
    state = load_block_state(folder / "blocks", index)
    for name, weight in state.linears.items():
        assert torch.equal(weight.codes.long(), expected.pop(f"{name}.codes").long())
        assert torch.equal(weight.codebooks, expected.pop(f"{name}.codebooks"))
        assert torch.equal(weight.row_scales, expected.pop(f"{name}.row_scales"))
    assert state.tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.tensors.items())


@pytest.mark.slow
@pytest.mark.parametrize("index", [1, BLOCKS - 1])
def test_a_block_is_what_a_plain_loop_makes_of_it(case: Case, index: int) -> None:
    """All sequences fit one chunk, so both see the same sums in the same order: the same bits."""
    job = case.job()
    assert job.stream is not None
    case.quantise(job, [(index, index + 1)], "ours")
    assert_block_equals(case.folder / "ours", index, oracle(case, index, job.stream.inputs(index))[0])


def test_sequential_blocks_with_the_models_targets_are_what_two_plain_loops_make(case: Case) -> None:
    """Quantised blocks one after the other, the unquantised ones beside them, the last one too: the same bits."""
    case.tuning = TO_THE_MODEL
    case.quantise(case.job(), [(0, BLOCKS)], "ours")
    quantised = unquantised = embed_tokens(case.model, TOKENS, torch.float32, "cpu")
    for index in range(BLOCKS):
        unquantised = oracle(case, index, unquantised)[2]
        expected, quantised, _ = oracle(case, index, quantised, unquantised)
        assert_block_equals(case.folder / "ours", index, expected)


def test_the_models_targets_are_the_next_blocks_inputs_in_the_stream(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every group, also where the block's inputs have errors; tuned to its own outputs, a block has others there."""
    seen: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(
        sequential, "tune_block", lambda block, inputs, targets, *rest: seen.append((inputs.clone(), targets.clone()))
    )
    case.tuning = TO_THE_MODEL
    job = case.job()
    assert job.stream is not None
    case.quantise(job, [(0, 2)], "ours")
    groups = len(job.family.sequential_groups)
    for number, (inputs, targets) in enumerate(seen):
        block = number // groups
        assert torch.equal(targets, job.stream.inputs(block + 1))
        assert torch.equal(inputs, job.stream.inputs(block)) == (block == 0)
    seen.clear()
    case.tuning = TUNING
    case.quantise(case.job(stream=None), [(0, 1)], "own")
    assert [torch.equal(targets, job.stream.inputs(1)) for _, targets in seen] == [True, False, False, False]


@pytest.mark.slow
def test_a_run_with_the_models_targets_is_the_same_however_it_is_cut(case: Case) -> None:
    case.tuning = TO_THE_MODEL
    job = case.job()
    expected = case.quantise(job, [(0, BLOCKS)], "whole")
    assert case.quantise(job, [(0, 1), (1, 2), (2, 3)], "one by one") == expected
    case.quantise(job, [(0, 2)], "forgotten")
    shutil.rmtree(case.folder / "forgotten/activations")
    assert case.quantise(job, [(2, 3)], "forgotten") == expected
    assert case.quantise(case.job(tuning=TUNING, stream=None), [(0, BLOCKS)], "own") != expected
    assert case.quantise(case.job(tuning=TUNING), [(0, BLOCKS)], "original inputs") != expected


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
import torch
from oaem.calibration import sequential
from tests.unit.calibration.test_stream import BLOCKS, TO_THE_MODEL, Case
place, left, calls = Path(sys.argv[2]), int(sys.argv[3]), []
def killing(write):
    def killed(*told):
        write(*told)
        calls.append(None)
        if len(calls) == left:
            os.kill(os.getpid(), signal.SIGKILL)
    return killed
sequential.ActivationWriter.write = killing(sequential.ActivationWriter.write)
sequential.write_block = killing(sequential.write_block)
torch.set_num_threads(1)
case = Case(Path(sys.argv[1]), place, TO_THE_MODEL)
case.quantise(case.job(), [(0, BLOCKS)], "killed")
"""


@pytest.mark.slow
@pytest.mark.parametrize("writes", [1, 4])
def test_a_killed_run_with_the_models_targets_goes_on_to_the_same_bytes(case: Case, writes: int) -> None:
    """Killed as it begins to store activations (1), or right after a block (4): each block but the last has both."""
    case.tuning = TO_THE_MODEL
    expected = case.quantise(case.job(), [(0, BLOCKS)], "whole")
    command = [sys.executable, "-c", KILLED_RUN, str(case.model), str(case.folder), str(writes)]
    assert subprocess.run(command, env=dict(os.environ)).returncode == -signal.SIGKILL
    blocks = case.folder / "killed/blocks"
    kept = {path: path.stat().st_mtime_ns for path in blocks.glob("*.safetensors")}
    assert len(kept) == writes // 2
    assert case.quantise(case.job(), [(0, BLOCKS)], "killed") == expected
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a finished block was made again"


def test_targets_of_every_group_are_the_next_blocks_inputs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(sequential, "tune_block", lambda block, inputs, targets, *rest: seen.append(targets.clone()))
    job = case.job()
    assert job.stream is not None
    case.quantise(job, [(0, 1)], "ours")
    assert len(seen) == len(job.family.sequential_groups)
    assert all(torch.equal(targets, job.stream.inputs(1)) for targets in seen)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [0, 2])
def test_blocks_in_any_order_and_alone_are_the_same_bytes(case: Case, epochs: int) -> None:
    case.tuning = BlockTuningSettings(epochs=epochs, lr=1e-3)
    job = case.job()
    expected = case.quantise(job, [(0, BLOCKS)], "whole")
    assert len(expected) == BLOCKS
    assert case.quantise(job, [(index, index + 1) for index in reversed(range(BLOCKS))], "backwards") == expected
    assert case.quantise(job, [(1, 2), (0, 2), (2, 3)], "overlapping") == expected
    assert not (case.folder / "whole/activations").exists(), "no activations of a run's own"
    assert case.quantise(case.job(stream=None), [(0, BLOCKS)], "sequential") != expected


@pytest.mark.slow
def test_block_zero_differs_from_sequential_only_by_its_targets(case: Case) -> None:
    """The inputs of the first block are the same in both; without tuning so is all that is made of them."""
    case.tuning = BlockTuningSettings(epochs=0)
    ours = case.quantise(case.job(), [(0, BLOCKS)], "ours")
    theirs = case.quantise(case.job(stream=None), [(0, BLOCKS)], "sequential")
    assert [ours[name] == theirs[name] for name in sorted(ours)] == [True, False, False]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from oaem.calibration import stream
from tests.unit.calibration.test_stream import TOKENS
write, left = stream.write_activations, int(sys.argv[3])
def killing(folder, index, hidden, fingerprint):
    write(folder, index, hidden, fingerprint)
    if index == left:
        os.kill(os.getpid(), signal.SIGKILL)
stream.write_activations = killing
torch.set_num_threads(1)
stream.make_stream(Path(sys.argv[1]), TOKENS, Path(sys.argv[2]), "made", "cpu")
"""


def stored(folder: Path) -> dict[str, str]:
    return {path.name: checksum(path) for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.slow
@pytest.mark.parametrize("last", range(BLOCKS))
def test_a_killed_stream_goes_on_to_the_same_bytes(case: Case, last: int) -> None:
    expected, sums = case.stream, stored(case.folder / "stream")
    folder = case.folder / "killed"
    command = [sys.executable, "-c", KILLED, str(case.model), str(folder), str(last)]
    assert subprocess.run(command, env=dict(os.environ)).returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(kept) == last + 1
    assert make_stream(case.model, TOKENS, folder, "made", "cpu") == expected.sums
    assert stored(folder) == sums
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a whole file was written again"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_damage_is_refused_by_a_block_and_mended_by_the_stream(case: Case, damage: str) -> None:
    stream, before = case.stream, stored(case.folder / "stream")
    path = activations_path(stream.folder, 1)
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            content[:-5] if damage == "truncated" else content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
        )
    with pytest.raises(UserError, match=r"0001\.safetensors: missing, damaged.*Delete that manifest"):
        stream.inputs(1)
    assert case.stream == stream
    assert stored(stream.folder) == before


def test_a_whole_file_that_is_another_streams_is_refused(case: Case) -> None:
    stream = case.stream
    wrong = {**stream.sums, "0001": stream.sums["0000"]}
    with pytest.raises(UserError, match=r"not what .*manifest\.json says"):
        replace(stream, sums=wrong).inputs(1)
    assert replace(stream, sums=wrong).identity != stream.identity


def test_files_made_under_another_fingerprint_are_replaced(case: Case) -> None:
    make_stream(case.model, TOKENS.flip(0), case.folder / "stream", "other tokens", "cpu")
    assert case.stream.inputs(2).shape == (SEQUENCES, WINDOW, 48)
    assert read_activations(case.folder / "stream", 2, "other tokens") is None


def test_a_stream_of_another_dtype_is_refused(case: Case) -> None:
    with pytest.raises(UserError, match=r"are torch.float32, but cuda:0 computes in torch.bfloat16.*`device`"):
        case.stream.require_dtype(torch.bfloat16, "cuda:0")


def test_too_little_disk_is_told_before_anything_is_written(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def full(folder: Path, needed: int, purpose: str) -> None:
        asked.append(needed)
        raise UserError(f"{purpose} needs")

    monkeypatch.setattr(streams, "require_disk", full)
    with pytest.raises(UserError, match="inputs of 3 blocks"):
        _ = case.stream
    assert asked == [BLOCKS * SEQUENCES * WINDOW * 48 * 4]
    assert not list(case.folder.rglob("*.safetensors"))


def test_outputs_that_are_not_finite_stop_the_stream(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "run_block", lambda block, hidden, arguments, batch: hidden / 0)
    with pytest.raises(UserError, match="block 0: its outputs are not finite"):
        _ = case.stream
