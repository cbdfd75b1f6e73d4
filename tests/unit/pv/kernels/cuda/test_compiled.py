"""Compiled blocks and their attention, on the CPU with the operators' plain twins, against the model as it is."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops import wrap

from oaem.models.attention_switch import sliding_mask
from oaem.models.load import load_model
from oaem.pv import student
from oaem.pv.kernels.cuda import attention, compiled, embeddings
from tests.conftest import FAMILIES
from tests.unit.pv.toy import VOCABULARY, make_model, make_state


def _plain(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int) -> tuple[Tensor, Tensor]:
    shared, tokens = query.shape[1] // key.shape[1], query.shape[2]
    scores = scaling * query.float() @ key.float().repeat_interleave(shared, 1).transpose(2, 3)
    logs = scores.masked_fill(~sliding_mask(tokens, window, query.device), float("-inf"))
    result = logs.softmax(3) @ value.float().repeat_interleave(shared, 1)
    return attention._by_token(result.to(query.dtype)), logs.logsumexp(3)


def _plain_gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, result: Tensor, logs: Tensor, scaling: float,
    window: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    groups, shared = key.shape[1], query.shape[1] // key.shape[1]
    queries, above = query.float(), gradient.float()
    keys, values = (part.float().repeat_interleave(shared, 1) for part in (key, value))
    weights = (scaling * queries @ keys.transpose(2, 3) - logs[..., None]).exp()
    weights = weights.masked_fill(~sliding_mask(query.shape[2], window, query.device), 0)
    change = weights * (above @ values.transpose(2, 3) - (above * result.float()).sum(3, keepdim=True)) * scaling
    found = change @ keys, change.transpose(2, 3) @ queries, weights.transpose(2, 3) @ above
    summed = (found[0], *(part.unflatten(1, (groups, shared)).sum(2) for part in found[1:]))
    return tuple(attention._by_token(part.to(query.dtype)).clone() for part in summed)


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Everything that a CUDA device gets, with another compiler; returns a list of the graphs that were compiled."""
    attention.attention.register_kernel("cpu", _plain)
    attention.attention_gradients.register_kernel("cpu", _plain_gradients)
    monkeypatch.setattr(attention, "_fits", lambda query: query.shape[2] % 8 == 0)
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(len(inputs))
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    fast = torch.compile(compiled._run, dynamic=False, backend=backend)
    monkeypatch.setattr(compiled, "_compiled", lambda: fast)
    return graphs


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_student_has_the_same_gradients(
    tmp_path: Path, on_the_cpu: list[int], monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """In bfloat16, rounded in other places: no farther from float32 than the model as it is, within a third."""
    folder = make_model(tmp_path, num_hidden_layers=3, attention_bias=True)
    tokens = torch.randint(VOCABULARY, (2, 48), generator=torch.Generator().manual_seed(1))
    exact, plain, ours = (
        student.Student(folder, make_state(folder), torch.bfloat16, dtype, "cpu")
        for dtype in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    for module in ours.model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "sdpa"
    embeddings.prepare_embeddings(ours.model)
    compiled.prepare_blocks(ours.model, checkpointing)
    weights = torch.randn(96, 32, generator=torch.Generator().manual_seed(2))
    for one in (exact, plain, ours):
        if one is ours:
            monkeypatch.setattr(student, "_sums_gradients", lambda inputs: True)
        one.clear_gradients()
        for part in tokens:
            (one.hidden(part[None]) * weights[:48]).sum().backward()
    assert len(on_the_cpu) == 1  # once for all blocks and sequences

    def gradients(one: student.Student) -> dict[str, Tensor]:
        found = {name: linear.weight_gradient for name, linear in one.linears.items()}
        return found | {name: part.grad for name, part in one.parameters.items() if part.grad is not None}

    wanted, usual, found = gradients(exact), gradients(plain), gradients(ours)
    assert set(found) == set(wanted)
    for name, right in wanted.items():
        errors = [float((one[name] - right).norm() / right.norm()) for one in (usual, found)]
        assert errors[1] < 1.33 * errors[0] + 1e-3, (name, errors)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_are_obeyed_without_a_mask(
    tiny_model: Callable[[str, bool], Path],
    on_the_cpu: list[int],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    dtype: torch.dtype,
) -> None:
    """In float32, which goes to torch's attention, to 1e-5; in bfloat16, compiled, no farther off than the model."""
    tokens = torch.randint(320, (2, 48), generator=torch.Generator().manual_seed(1))
    exact, plain, ours = (
        load_model(tiny_model(family, True), wanted, "cpu").requires_grad_(False)
        for wanted in (torch.float32, dtype, dtype)
    )
    seen: list[int] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int) -> tuple[Tensor, Tensor]:
        seen.append(window)
        return _plain(query, key, value, scaling, window)

    attention.attention.register_kernel("cpu", attend)
    compiled.prepare_blocks(ours, checkpointing=False)
    with torch.no_grad():
        wanted, usual, found = (model(tokens, use_cache=False).logits.float() for model in (exact, plain, ours))
    errors = [float((one - wanted).norm() / wanted.norm()) for one in (usual, found)]
    assert errors[1] < 1.33 * errors[0] + 1e-5, errors
    windows = {"mistral": 3 * [20], "gemma3_text": [8, 0, 8]}.get(family, [0, 0, 0])
    assert seen == ([] if dtype == torch.float32 else windows)
    assert len(on_the_cpu) == len(set(windows)), "one graph for all blocks of a kind"


def test_a_teacher_is_compiled_and_a_measure_is_not(tmp_path: Path, on_the_cpu: list[int]) -> None:
    folder = make_model(tmp_path)
    tokens = torch.randint(VOCABULARY, (1, 48))
    teacher, trained = (load_model(folder, torch.bfloat16, "cpu") for _ in range(2))
    compiled.prepare_blocks(teacher.requires_grad_(False), checkpointing=False)
    compiled.prepare_blocks(trained, checkpointing=True)
    with torch.no_grad():
        found, wanted = (model.get_decoder()(input_ids=tokens, use_cache=False)[0] for model in (teacher, trained))
    assert len(on_the_cpu) == 1
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


def test_the_operators_keep_their_promises() -> None:
    attention.attention.register_kernel("cpu", _plain)
    attention.attention_gradients.register_kernel("cpu", _plain_gradients)
    query = torch.randn(1, 8, 4, 16).bfloat16().transpose(1, 2).requires_grad_()
    key, value = (torch.randn(1, 8, 2, 16).bfloat16().transpose(1, 2).requires_grad_() for _ in range(2))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for window in (0, 3):
        torch.library.opcheck(attention.attention, (query, key, value, 0.25, window), test_utils=checks)


def test_without_a_compiler_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("no C compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", missing)
    compiled._compiled.cache_clear()
    try:
        assert compiled._compiled() is compiled._run
        assert compiled._compiled() is compiled._run
    finally:
        compiled._compiled.cache_clear()
    assert [record.message.count("no C compiler)") for record in caplog.records] == [1]


def test_torchs_reminder_is_not_told_and_everything_else_is() -> None:
    (reminder,) = (line for line in inspect.getsource(wrap).splitlines() if line.startswith("Detected that context_fn"))

    def told(text: str) -> bool:
        return compiled._tells_news(logging.LogRecord("torch", logging.WARNING, "", 0, text, (), None))

    assert not told(f"\n{reminder}\nPlease make sure that nothing is done in place.")
    assert told("torch._dynamo hit config.recompile_limit (8)")
