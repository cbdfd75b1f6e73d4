"""Perplexity against the literal computation, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from oaem.corpora.tokens import write_tokens
from oaem.errors import UserError
from oaem.evaluation import perplexity as room
from oaem.evaluation.domains import measure_domains
from oaem.evaluation.metrics import Metric
from oaem.evaluation.perplexity import perplexity
from oaem.models.load import load_model
from oaem.runtime.progress import Progress
from oaem.runtime.seeds import generator

LENGTH = 33


def draw_tokens(count: int) -> torch.Tensor:
    return torch.randint(320, (count, LENGTH), generator=generator(2, "tokens"), dtype=torch.int32)


@torch.no_grad()
def literal(folder: Path, tokens: torch.Tensor, dtype: torch.dtype) -> list[float]:
    """Mean token loss of each window from the model's whole logits."""
    logits = load_model(folder, dtype, "cpu")(tokens.long(), use_cache=False).logits.float()
    return [
        float(functional.cross_entropy(window[:-1], row[1:].long())) for window, row in zip(logits, tokens, strict=True)
    ]


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("logits_at_once", [320 * 5, 2**26])
def test_equals_the_literal_one(
    tiny_model: Callable[[str, bool], Path],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    tied: bool,
    dtype: torch.dtype,
    logits_at_once: int,
) -> None:
    """To 1e-5 in float32, also when the logits of a window come in chunks of 5 tokens; bfloat16 rounds each logit."""
    monkeypatch.setattr(room, "LOGITS_AT_ONCE", logits_at_once)
    folder, tokens = tiny_model(family, tied), draw_tokens(5)
    result = perplexity(load_model(folder, dtype, "cpu"), tokens, 2, "cpu")
    expected = literal(folder, tokens, dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-3
    assert result.window_losses == pytest.approx(expected, rel=tolerance)
    assert result.value == pytest.approx(math.exp(sum(expected) / 5), rel=tolerance * 10)
    assert (result.windows, result.tokens) == (5, 5 * (LENGTH - 1))


def test_a_uniform_model_has_the_vocabulary_as_perplexity(tiny_llama_untied: Path) -> None:
    model = load_model(tiny_llama_untied, torch.float32, "cpu")
    torch.nn.init.zeros_(model.lm_head.weight)
    result = perplexity(model, draw_tokens(2), 1, "cpu")
    assert result.value == pytest.approx(320, rel=1e-5)
    assert result.stderr == pytest.approx(0, abs=1e-3)


def test_windows_do_not_see_each_other(tiny_qwen2: Path) -> None:
    model, tokens = load_model(tiny_qwen2, torch.float32, "cpu"), draw_tokens(4)
    alone = [perplexity(model, window[None], 1, "cpu").window_losses[0] for window in tokens]
    assert perplexity(model, tokens, 4, "cpu").window_losses == pytest.approx(alone, rel=1e-5)


def test_standard_error_and_progress(tiny_llama: Path) -> None:
    model, tokens, lines = load_model(tiny_llama, torch.float32, "cpu"), draw_tokens(6), list[str]()
    result = perplexity(model, tokens, 4, "cpu", Progress("windows", 6, report=lines.append))
    losses = torch.tensor(result.window_losses, dtype=torch.float64)
    assert result.stderr == pytest.approx(result.value * float(losses.std()) / 6**0.5)
    assert perplexity(model, tokens[:1], 1, "cpu").stderr is None
    assert lines
    assert lines[-1].startswith("windows: 6/6")


def test_tokens_of_another_model_are_refused(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, torch.float32, "cpu")
    with pytest.raises(UserError, match="token 320 is not in the model's vocabulary of 320"):
        perplexity(model, torch.tensor([[1, 320]]), 1, "cpu")
    with pytest.raises(UserError, match=r"found \[1, 1\]"):
        perplexity(model, torch.tensor([[1]]), 1, "cpu")


def test_each_domain_gets_the_numbers_of_its_own_text(tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(tiny_llama, torch.float32, "cpu")
    texts = {"zebra": torch.tensor([[5, 6, 7, 8]]), "apple": torch.tensor([[9, 9, 9, 9]])}
    files = [tmp_path / f"eval-{name}.safetensors" for name in ("zebra", "apple")]
    for (name, tokens), path in zip(texts.items(), files, strict=True):
        write_tokens(path, tokens.int(), {"text": name})
    domains = {name: {"role": "near", "label": name.title()} for name in ("apple", "zebra")}
    blank = Metric("tiny", "fp16", "", "perplexity", float("nan"))
    for order in (files, files[::-1]):
        found = {row.dataset: row for row in measure_domains(model, blank, domains, order, 1, "cpu")}
        for name, tokens in texts.items():
            assert found[name].value == perplexity(model, tokens, 1, "cpu").value
            assert (found[name].protocol["text"], found[name].label) == (name, name.title())
    with pytest.raises(UserError, match="apple"):
        measure_domains(model, blank, domains, files[:1], 1, "cpu")
