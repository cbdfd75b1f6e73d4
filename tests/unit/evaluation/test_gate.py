"""The gate: a model that is not what the paper measured stops the grid, with an explanation."""

import pytest

from oaem.config.schema import load
from oaem.errors import UserError
from oaem.evaluation.gate import check
from oaem.planning.rules import gate


def test_within_the_tolerance_passes() -> None:
    check("m", {"wikitext2": 7.30, "c4": 99.0}, {"wikitext2": 7.28}, 0.01)
    check("m", {"wikitext2": 7.30}, {}, 0.01)


def test_outside_it_is_explained() -> None:
    with pytest.raises(UserError) as error:
        check("m", {"wikitext2": 7.60, "c4_new": 11.04}, {"wikitext2": 7.28, "c4_new": 11.04}, 0.01)
    text = str(error.value)
    assert "wikitext2: measured 7.600, expected 7.28" in text
    assert "c4_new: measured" not in text
    assert "models.m.expected_perplexity" in text


def test_only_models_with_an_expectation_wait() -> None:
    paper, embedded = load("config/paper.yaml"), load("config/config.yaml")
    waiting = {run.model for run in paper.runs() if gate(paper, run.path)}
    assert waiting == {"llama-3.2-3b"}
    assert not any(gate(embedded, run.path) for run in embedded.runs())
