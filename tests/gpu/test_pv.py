"""PV-tuning on a CUDA device: kernels against the definitions, and the same bytes however often it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from oaem.models.attention_switch import sliding_mask
from oaem.pv import outcomes, student
from oaem.pv.kernels.cuda import compiled
from oaem.pv.kernels.cuda.attention import attention, attention_gradients
from oaem.pv.kernels.cuda.embeddings import StudentEmbedding
from oaem.pv.lamb import Lamb, lamb_step, lamb_step_reference
from oaem.pv.loss import backward_kl, kl_divergence_reference
from oaem.pv.plan import TOKENS_AT_ONCE, Placement
from oaem.pv.products import add_product
from oaem.pv.straight_through import reencode, reencode_reference
from oaem.pv.student import Student
from oaem.pv.trainer import PVJob, tune
from oaem.quantization.weight import dequantize
from oaem.runtime.seeds import generator
from tests.unit.pv.toy import VOCABULARY, make_model, make_settings, make_state, stopped_in

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WINDOW = 64
SHAPE = {"hidden_size": 64, "intermediate_size": 96}  # heads of 16, which the fused attention takes


def tokens_of(sequences: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (sequences, WINDOW), generator=torch.Generator().manual_seed(seed))


def measure(model: Any) -> float:
    tokens = tokens_of(2, 9)[:, :50].cuda()  # a length of its own, as a measure of perplexity has
    logits = model(tokens).logits[:, :-1].flatten(0, 1).float()
    return float(torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).exp())


def run_on_device(model: Path, folder: Path, placement: Placement) -> dict[str, Any]:
    # Three sequences of 64 make a step, two at once: the last pass of a step has another shape.
    job = PVJob(model, make_settings(code_lr=0.05), 7, torch.bfloat16, torch.bfloat16, "cuda:0", "toy", placement)
    return tune(job, make_state(model), tokens_of(11, 1), folder, measure, measure, lambda line: None)


def test_tuned_twice_and_once_interrupted_it_leaves_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(tmp_path / "model", **SHAPE)
    monkeypatch.setitem(TOKENS_AT_ONCE, "cuda", 2 * WINDOW)
    whole = run_on_device(model, tmp_path / "whole", Placement())
    assert whole["epochs"][2]["loss"] < whole["epochs"][0]["loss"]
    assert whole["epochs"][2]["codes_changed"] > 0
    with stopped_in(6):
        run_on_device(model, tmp_path / "other", Placement("memory"))
    torch._dynamo.reset()  # as in a new process
    compiled._compiled.cache_clear()
    resumed = run_on_device(model, tmp_path / "other", Placement("live", True, True))
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    for name in outcomes.OUTCOMES:
        pair = [(tmp_path / folder / f"{name}.safetensors").read_bytes() for folder in ("whole", "other")]
        assert pair[0] == pair[1], name
    assert "uncompiled" not in caplog.text


def test_gradients_of_a_compiled_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float32 on the CPU: no farther than torch's own kernels in bfloat16, within a third; always the same."""
    folder = make_model(tmp_path, **SHAPE, attention_bias=True)
    tokens, weights = tokens_of(2, 4), torch.randn(2 * WINDOW, 64, generator=torch.Generator().manual_seed(2))

    def gradients(dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
        model = Student(folder, make_state(folder), torch.bfloat16, dtype, device, gradient_checkpointing=True)
        model.clear_gradients()
        for _ in range(2):
            (model.hidden(tokens.to(device)) * weights.to(device)).sum().backward()
        found = {name: linear.weight_gradient.cpu() for name, linear in model.linears.items()}
        return found | {k: v.grad.cpu() for k, v in model.parameters.items() if v.grad is not None}

    ours, again = gradients(torch.bfloat16, "cuda"), gradients(torch.bfloat16, "cuda")
    exact = gradients(torch.float32, "cpu")
    monkeypatch.setattr(student, "prepare_blocks", lambda *_: None)
    monkeypatch.setattr(student, "_sums_gradients", lambda inputs: False)
    usual = gradients(torch.bfloat16, "cuda")
    assert set(exact) == set(ours)
    table = {
        name: [float((one[name] - wanted).norm() / wanted.norm()) for one in (usual, ours)]
        for name, wanted in exact.items()
    }
    assert all(error <= 1.33 * other + 1e-3 for other, error in table.values()), table
    assert all(torch.equal(ours[name], again[name]) for name in exact)


@pytest.mark.parametrize("token_chunk", [7, 1000])
def test_divergence(token_chunk: int) -> None:
    """Against float64, from bfloat16 logits: a hundredth of the norm."""
    draws = torch.Generator("cuda").manual_seed(0)
    hidden, head, teacher_hidden, teacher_head = (
        torch.randn(size, 48, generator=draws, device="cuda") * 0.4 for size in (300, 5003, 300, 5003)
    )
    teacher_hidden, teacher_head = teacher_hidden.bfloat16(), teacher_head.bfloat16()
    exact = [part.bfloat16().double().requires_grad_() for part in (hidden, head)]
    expected = 0.25 * kl_divergence_reference(*exact, teacher_hidden.double(), teacher_head.double())
    wanted = torch.autograd.grad(expected, exact)
    runs = []
    for _ in range(2):
        leaves = [part.clone().requires_grad_() for part in (hidden, head)]
        loss = backward_kl(*leaves, teacher_hidden, teacher_head, token_chunk, 0.25)
        assert float(loss) == pytest.approx(expected.item(), rel=1e-2)
        runs.append((loss, *(leaf.grad for leaf in leaves)))
        for leaf, right in zip(leaves, wanted, strict=True):
            assert float((leaf.grad - right).norm() / right.norm()) < 0.01
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_lamb(beta1: float) -> None:
    lamb = Lamb(lr=0.02, beta1=beta1, beta2=0.95, eps=1e-6)
    parameter = torch.randn(700, 301, device="cuda")
    expected, first, second = parameter.double(), *(torch.zeros_like(parameter).double() for _ in range(2))
    moments = lamb.moments(parameter)
    for step in range(1, 6):
        gradient = torch.randn_like(parameter) * 10.0 ** (step % 5 - 3)
        lamb_step(parameter, gradient, moments, step, lamb)
        expected, first, second = lamb_step_reference(expected, gradient.double(), first, second, step, lamb)
    torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments["second"].double(), second, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("m", "size", "width"), [(2, 256, 8), (3, 64, 6), (1, 16, 4)])
def test_reencoding(m: int, size: int, width: int) -> None:
    draws = torch.Generator().manual_seed(m)
    codes = torch.randint(size, (12, 9, m), generator=draws).to(torch.uint8)
    codebooks, scales = torch.randn(m, size, width, generator=draws), torch.rand(12, generator=draws) - 0.6
    buffer = dequantize(codes, codebooks, scales)
    buffer = buffer + torch.randn(buffer.shape, generator=draws) * torch.rand(buffer.shape, generator=draws)
    order = torch.randperm(m, generator=generator(7, "walk")).tolist()
    expected, near = reencode_reference(codes, codebooks, scales, buffer, 0.3, order), codes.cuda()
    arguments = [part.cuda() for part in (codebooks, scales, buffer)]
    weight, changed = reencode(near, *arguments, 0.3, generator(7, "walk"))
    assert torch.equal(near.cpu().int(), expected.int())
    assert int(changed) == int((near.cpu() != codes).sum())
    torch.testing.assert_close(weight.cpu(), dequantize(near.cpu(), codebooks, scales))


@pytest.mark.parametrize(
    ("tokens", "width", "window"), [(128, 16, 0), (320, 128, 0), (64, 64, 0), (256, 64, 70), (192, 256, 100)]
)
def test_attention(tokens: int, width: int, window: int) -> None:
    """Against float64: a hundredth of the norm, as bfloat16 has it; with the same bits on every run."""
    draws = torch.Generator("cuda").manual_seed(0)
    query, key, value, above = (
        torch.randn(2, tokens, heads, width, generator=draws, device="cuda").bfloat16().transpose(1, 2)
        for heads in (6, 2, 2, 6)
    )
    exact = [part.double().requires_grad_() for part in (query, key, value)]
    scores = 0.1 * exact[0] @ exact[1].repeat_interleave(3, 1).transpose(2, 3)
    scores = scores.masked_fill(~sliding_mask(tokens, window, query.device), float("-inf"))
    wanted = scores.softmax(3) @ exact[2].repeat_interleave(3, 1)
    result, logs = attention(query, key, value, 0.1, window)
    torch.testing.assert_close(logs.double(), scores.logsumexp(3), rtol=1e-4, atol=1e-4)
    found = attention_gradients(above, query, key, value, result, logs, 0.1, window)
    for ours, right in zip(
        (result, *found), (wanted, *torch.autograd.grad(wanted, exact, above.double())), strict=True
    ):
        assert float((ours - right).detach().norm() / right.detach().norm()) < 0.01
    for _ in range(5):
        again = attention_gradients(above, query, key, value, result, logs, 0.1, window)
        assert all(map(torch.equal, found, again))


def test_rows_of_embeddings_are_summed_with_the_same_bits_on_every_run() -> None:
    plain = torch.nn.Embedding(50, 300, padding_idx=3, device="cuda")
    tokens, above = torch.randint(50, (2, 2000), device="cuda"), torch.randn(2, 2000, 300, device="cuda")
    (plain(tokens) * above).sum().backward()
    wanted, runs = plain.weight.grad, []
    for _ in range(5):
        plain.weight.grad = None
        (StudentEmbedding(plain)(tokens) * above).sum().backward()
        runs.append(plain.weight.grad)
    torch.testing.assert_close(runs[0], wanted, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(runs[0], other) for other in runs)


def test_products_are_added_in_float32() -> None:
    left, right = (torch.randn(500, size, device="cuda").bfloat16() for size in (70, 90))
    total = torch.randn(70, 90, device="cuda")
    expected = total.double() + left.double().T @ right.double()
    add_product(total, left, right)
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-4)
