"""A tokenizer is compared with what its GGUF file says of it: transformers of some versions make another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from oaem.errors import UserError
from oaem.models import gguf
from oaem.models.gguf import convert_gguf, gguf_fields, tokenizer_fault
from tests.unit.models.wheels import write_gguf

PIECES = ["<bos>", "a", "b"]


def tokenizer(model: Any, *, bos: bool) -> PreTrainedTokenizerFast:
    made = Tokenizer(model)
    if bos:
        made.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=PIECES[0])


def bpe(*, bos: bool) -> PreTrainedTokenizerFast:
    return tokenizer(BPE({piece: index for index, piece in enumerate(PIECES)}, []), bos=bos)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("bos", [True, False])
def test_a_tokenizer_as_its_file_describes_it(kind: str, bos: bool) -> None:
    assert tokenizer_fault(bpe(bos=bos), {"model": kind, "add_bos_token": bos, "bos_token_id": 0}) == ""


def test_a_file_that_says_nothing_contradicts_nothing() -> None:
    assert tokenizer_fault(bpe(bos=True), {}) == ""
    assert tokenizer_fault(bpe(bos=True), {"model": "t5"}) == ""


def test_pieces_taken_for_a_unigram_vocabulary() -> None:
    """Gemma by transformers 5.17."""
    found = tokenizer_fault(
        tokenizer(Unigram([(piece, -1.0) for piece in PIECES], 0, False), bos=True), {"model": "llama"}
    )
    assert found == "it splits words by Unigram, the file's kind is llama, which is BPE"


@pytest.mark.parametrize(
    ("bos", "found"),
    [
        (False, "text begins without the start token, in the file with it"),
        (True, "text begins with the start token, in the file without it"),
    ],
)
def test_a_start_token_too_few_or_too_many(bos: bool, found: str) -> None:
    """Too few: Gemma by transformers 5.22."""
    assert tokenizer_fault(bpe(bos=bos), {"model": "llama", "add_bos_token": not bos, "bos_token_id": 0}) == found


def test_a_model_with_another_tokenizer_is_refused(
    tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(tiny_qwen2, file)
    assert gguf_fields(file)["bos_token_id"] == 0
    monkeypatch.setattr(gguf, "tokenizer_fault", lambda *_: "it is another")
    version = transformers.__version__
    with pytest.raises(
        UserError, match=rf"model\.gguf: transformers {version} makes another .*: it is another\. Install"
    ):
        convert_gguf(file, tmp_path / "made", "float32", lambda _: None)
    assert not (tmp_path / "made").exists()
