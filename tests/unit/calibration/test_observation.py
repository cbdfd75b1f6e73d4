"""A walk that goes on from group to group sees, to the bit, what one that starts from the block's inputs sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from oaem.calibration import observation
from oaem.calibration.forward_log import ForwardLog
from oaem.calibration.observation import BlockWalk
from oaem.calibration.sequential import replace_linear
from oaem.models.attention import use_fast_attention
from oaem.models.capture import block_arguments, run_block
from oaem.models.families import family_of
from oaem.models.load import embed_tokens, load_block, load_config
from oaem.quantization.hessian import HessianAccumulator
from oaem.quantization.weight import AdditiveWeight, row_scales_of
from oaem.runtime.seeds import generator
from tests.conftest import FAMILIES

Groups = tuple[tuple[str, ...], ...]
Seen = tuple[list[dict[str, Tensor]], list[Tensor | None], Tensor]


def quantise(block: nn.Module, group: tuple[str, ...]) -> None:
    """Put an additive weight with random entries in the place of each linear of `group`."""
    for name in group:
        weight = block.get_submodule(name).weight.detach().float()
        draws = generator(3, name)
        codes = torch.randint(8, (len(weight), weight.shape[1] // 4, 2), generator=draws, dtype=torch.uint8)
        entries = torch.randn(2, 8, 4, generator=draws) / 8
        replace_linear(block, name, AdditiveWeight(codes, entries, row_scales_of(weight)), weight_dtype(block))


def weight_dtype(block: nn.Module) -> torch.dtype:
    return next(block.parameters()).dtype


def from_the_start(block: nn.Module, hidden: Tensor, arguments: dict[str, Any], groups: Groups) -> Seen:
    """The oracle: the whole block for every group, from its inputs to its end; then once more for its outputs."""
    hessians, targets = [], []
    for group in groups:
        found: dict[str, HessianAccumulator] = {}
        pieces = []
        for chunk in hidden.split(observation.batch_size(hidden)):
            with ExitStack() as stack:
                for name in group:
                    linear = block.get_submodule(name)
                    total = found.setdefault(name, HessianAccumulator(linear.weight.shape[1]))
                    hook = linear.register_forward_pre_hook(lambda _, inputs, total=total: total.update(inputs[0]))
                    stack.callback(hook.remove)
                pieces.append(run_block(block, chunk, arguments, batch=len(chunk)))
        hessians.append({name: total.finish() for name, total in found.items()})
        targets.append(torch.cat(pieces))
        quantise(block, group)
    return hessians, targets, run_block(block, hidden, arguments, batch=observation.batch_size(hidden))


def in_one_walk(
    block: nn.Module, hidden: Tensor, arguments: dict[str, Any], groups: Groups, tuned: bool, unquantised: bool = False
) -> Seen:
    walk = BlockWalk(block, hidden, arguments, groups, tuned, unquantised)
    hessians, targets = [], []
    for number, group in enumerate(groups):
        found, target = walk.observe(number)
        hessians.append(found)
        targets.append(target)
        quantise(block, group)
    return hessians, targets, walk.outputs()


def assert_same_bits(ours: Seen, oracle: Seen) -> None:
    for found, expected in zip(ours[0], oracle[0], strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(ours[2], oracle[2])


class Case:
    """A block of a tiny model twice over, with its inputs: five sequences in chunks of two."""

    def __init__(self, folder: Path, dtype: torch.dtype, attention: str):
        self.groups = family_of(load_config(folder)).sequential_groups
        tokens = torch.randint(320, (5, 20), generator=generator(1, "tokens"), dtype=torch.int32)
        self.hidden = embed_tokens(folder, tokens, dtype, "cpu")
        self.arguments = block_arguments(folder, 1, 20, dtype, "cpu")
        self.blocks = [load_block(folder, 1, dtype, "cpu") for _ in range(2)]
        for block in self.blocks:
            if attention == "oaem":
                use_fast_attention(block)
            else:
                block.self_attn.config._attn_implementation = attention

    def both(self, tuned: bool = False, unquantised: bool = False) -> tuple[Seen, Seen]:
        given = self.hidden, self.arguments, self.groups
        with torch.no_grad():
            return in_one_walk(self.blocks[0], *given, tuned, unquantised), from_the_start(self.blocks[1], *given)


@pytest.fixture(autouse=True)
def _two_sequences_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "batch_size", lambda hidden: 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["oaem", "sdpa", "eager"])
def test_same_bits(tiny_model: Callable[[str, bool], Path], family: str, dtype: torch.dtype, attention: str) -> None:
    assert_same_bits(*Case(tiny_model(family, True), dtype, attention).both())


@pytest.mark.parametrize("family", FAMILIES)
def test_with_tuning_each_observation_runs_the_whole_block(
    tiny_model: Callable[[str, bool], Path], family: str
) -> None:
    ours, oracle = Case(tiny_model(family, True), torch.float32, "oaem").both(tuned=True)
    assert_same_bits(ours, oracle)
    for found, expected in zip(ours[1], oracle[1], strict=True):
        assert found is not None and expected is not None and torch.equal(found, expected)


@pytest.mark.parametrize("tuned", [True, False])
def test_unquantised_targets_stay_and_the_inputs_are_the_same_bits(
    tiny_model: Callable[[str, bool], Path], tuned: bool
) -> None:
    ours, oracle = Case(tiny_model("llama", True), torch.float32, "oaem").both(tuned, unquantised=True)
    assert_same_bits(ours, oracle)
    first = oracle[1][0]
    assert first is not None
    for found in ours[1]:
        assert (found is not None and torch.equal(found, first)) if tuned else found is None


@pytest.mark.parametrize("kilobytes", [0, 10, 20, 40, 80])
def test_less_memory_changes_no_bit(tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch, kilobytes: int) -> None:
    """Each of three chunks keeps nothing, its first results, or all of them, 70 kB."""
    monkeypatch.setattr(observation, "KEPT_BYTES", 3 * 1024 * kilobytes)
    assert_same_bits(*Case(tiny_qwen2, torch.float32, "oaem").both())


def test_every_layer_and_the_attention_run_once(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the first chunk the linears of a group run twice: whether they share their input is seen there."""
    case = Case(tiny_llama, torch.float32, "oaem")
    counts: Counter[str] = Counter()
    attend = functional.softmax
    monkeypatch.setattr(
        "oaem.models.kernels.cpu.attention.functional.softmax",
        lambda *a, **k: counts.update(["attention"]) or attend(*a, **k),
    )
    linear = functional.linear
    monkeypatch.setattr(functional, "linear", lambda *a, **k: counts.update(["linear"]) or linear(*a, **k))
    with torch.no_grad():
        in_one_walk(case.blocks[0], case.hidden, case.arguments, case.groups, tuned=False)
    # Five sequences with two key heads; three chunks of seven linears, and q, k and gate of the first once more.
    assert counts == {"attention": 5 * 2, "linear": 3 * 7 + 3}


def test_the_block_is_left_as_it_was(tiny_llama: Path) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    case = Case(tiny_llama, torch.float32, "sdpa")
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with torch.no_grad():
        in_one_walk(case.blocks[0], case.hidden, case.arguments, case.groups, tuned=False)
    assert not any("forward" in vars(module) for module in case.blocks[0].modules())
    assert not any(module._forward_pre_hooks for module in case.blocks[0].modules())
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


class Strange(nn.Module):
    """Linears that read each other within a group, groups against the order of calls, a layer called twice."""

    def __init__(self, in_place: bool):
        super().__init__()
        draws = generator(5, "strange")
        for name in ("a", "b", "c", "d"):
            linear = nn.Linear(16, 16, bias=False)
            with torch.no_grad():
                linear.weight.copy_(torch.randn(16, 16, generator=draws) / 4)
            self.add_module(name, linear)
        self.act, self.norm, self.in_place = nn.SiLU(inplace=in_place), nn.LayerNorm(16), in_place

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        first = self.act(self.a(self.norm(hidden)))
        second = self.act(self.b(first))
        if self.in_place:
            second += hidden
        return self.d(self.norm(second + self.c(first))) + hidden, None


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "groups", [(("a", "b"), ("c",), ("d",)), (("d",), ("c", "b"), ("a",)), (("c",), ("a",), ("b",))]
)
def test_strange_blocks_are_seen_rightly_too(groups: Groups, in_place: bool) -> None:
    hidden = torch.randn(5, 3, 16, generator=generator(6, "hidden"))
    with torch.no_grad():
        ours = in_one_walk(Strange(in_place), hidden, {}, groups, tuned=False)
        oracle = from_the_start(Strange(in_place), hidden, {}, groups)
    assert_same_bits(ours, oracle)


def test_a_log_keeps_no_call_after_one_that_does_not_fit() -> None:
    """Else the second of two calls of one layer would be taken for the first."""
    log = ForwardLog(limit=400)
    large, small = torch.zeros(200), torch.ones(20)
    for _ in range(2):
        log.restart()
        assert log.call("layer", lambda: large) is large
        assert log.call("layer", lambda: small) is small
    assert log.results == []


def test_where_writes_are_not_counted_nothing_is_kept() -> None:
    log = ForwardLog(limit=400)
    with torch.inference_mode():
        log.call("layer", lambda: torch.zeros(2))
    assert log.results == []
