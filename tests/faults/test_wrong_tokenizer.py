"""A tokenizer that is not the model's: seen where tokens are cut, and again by every job that reads tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from oaem.corpora.tokens import read_tokens, write_tokens
from oaem.models.load import load_tokenizer
from tests.conftest import VOCABULARY
from tests.faults.conftest import TOKEN_SETS, Fresh
from tests.faults.pipeline import Pipeline
from tests.reliability import MESSAGE, SAME

KIND = "wrong tokenizer"


def replace_tokenizer(folder: Path) -> None:
    """Give the model in `folder` a tokenizer with more tokens than it has embeddings."""
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["river", "mill", "water"])
    for file in folder.glob("tokenizer*"):
        file.unlink()
    tokenizer.save_pretrained(folder)


@pytest.mark.fault(KIND, "the model's folder holds one with more tokens than embeddings", MESSAGE)
def test_a_larger_tokenizer(fresh: Fresh) -> None:
    pipeline = fresh()
    arguments = pipeline.tokens("eval-far")
    kept = pipeline.folder / arguments.output["tokens"]
    before = kept.read_bytes()
    replace_tokenizer(pipeline.folder / "results/models/tiny/hf")
    code, output = pipeline.run(arguments)
    assert code == 1, output
    assert f"results/models/tiny/hf: token {VOCABULARY + 2} is not in the model's vocabulary of {VOCABULARY}" in output
    assert "Traceback" not in output and "unexpected" not in output, output
    assert kept.read_bytes() == before


@pytest.mark.parametrize("job", ["quantize", "pv_tune", "perplexity"])
@pytest.mark.fault(KIND, "tokens that were cut with another model's", f"{MESSAGE}; then {SAME}")
def test_tokens_of_another_model(whole: Pipeline, fresh: Fresh, job: str) -> None:
    pipeline = fresh(whole)
    arguments = pipeline.without(job)
    for name in TOKEN_SETS:
        path = pipeline.folder / pipeline.tokens(name).output["tokens"]
        tokens, protocol = read_tokens(path)
        tokens[0, 3] = VOCABULARY + 5
        path.unlink()
        write_tokens(path, tokens, protocol | {"sha256": None})
    code, output = pipeline.run(arguments)
    assert code == 1, output
    assert f"{VOCABULARY + 5}" in output
    assert "another" in output and "tokenizer" in output and "run the same command again" in output
    assert "Traceback" not in output and "unexpected" not in output, output
    pipeline.make(*(pipeline.tokens(name) for name in TOKEN_SETS), arguments)
    assert pipeline.equals(whole)
