"""From a GGUF file to a plain Hugging Face folder: weights made dense, the tokenizer that the file describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from oaem.errors import UserError

# Special tokens by the file's name for them and by the tokenizer's.
_SPECIAL_TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
# How a kind of tokenizer splits words, by the file's name for it: SentencePiece's of this name are byte-pair, too.
_SPLITS = {"gpt2": "BPE", "llama": "BPE"}
# The first version seen to make every tokenizer here as its file describes it.
READS_TOKENIZERS = "5.23"


def convert_gguf(file: Path, target: Path, dtype: str, mend: Callable[[Any], None]) -> None:
    """Write the model in `file` to the folder `target`, its weights dense in `dtype`; the file itself stays as it is.

    transformers turns the quantised weights into dense ones. `mend` corrects the tokenizer where transformers does not
    read it right. UserError if the package gguf is missing, the file is not of an architecture that is read here, or
    transformers makes another tokenizer of it than it describes.
    """
    if find_spec("gguf") is None:
        raise UserError(f"{file}: reading a GGUF file needs the package gguf; run `pip install gguf`.")
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # Where transformers could also keep the weights packed, it must be told not to; older versions always unpack.
    dense = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    try:
        with _reading_once():
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=getattr(torch, dtype), **dense)
            tokenizer = AutoTokenizer.from_pretrained(**where)
            fields = gguf_fields(file)
            _name_special_tokens(tokenizer, fields)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(f"{file}: transformers cannot read a model from this GGUF file ({error}).") from None
    fault = tokenizer_fault(tokenizer, fields)
    if fault:
        raise UserError(
            f"{file}: transformers {transformers.__version__} makes another tokenizer than its own: {fault}. "
            f"Install transformers {READS_TOKENIZERS} or later, or bring a folder that it converted (source folder)."
        )
    _forget_gguf(model)
    model.save_pretrained(target)
    mend(tokenizer)
    tokenizer.save_pretrained(target)


@contextmanager
def _reading_once() -> Iterator[None]:
    """Let transformers parse a file once, which it does for configuration, weights and tokenizer each, and work out the
    names of a model's tensors once, which it does for every module: half the time that a small model takes.

    A transformers that asks elsewhere is as slow as before.
    """
    import gguf

    own = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in own.items():
            setattr(gguf, name, cache(function))
        yield
    finally:
        for name, function in own.items():
            setattr(gguf, name, function)


def gguf_fields(file: Path) -> dict[str, Any]:
    """What the file says of its tokenizer, by the key's last part: `model`, `bos_token_id`, `add_bos_token`, …"""
    from gguf import GGUFReader

    start = "tokenizer.ggml."
    fields = GGUFReader(str(file)).fields
    lists = ("tokens", "scores", "merges", "token_type")  # long, and nobody asks for them
    names = {name.removeprefix(start): field for name, field in fields.items() if name.startswith(start)}
    return {name: field.contents() for name, field in names.items() if name not in lists}


def _name_special_tokens(tokenizer: Any, fields: dict[str, Any]) -> None:
    """Give the tokenizer the special tokens of its file: transformers 5.17 takes the start token for the end."""
    for kind, name in _SPECIAL_TOKENS.items():
        index = fields.get(f"{kind}_token_id")
        if index is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(int(index)))


def tokenizer_fault(tokenizer: Any, fields: dict[str, Any]) -> str:
    """How `tokenizer` contradicts the `fields` of its GGUF file; empty if it does not.

    Two faults of transformers are known that nothing else shows: Gemma's pieces taken for a unigram vocabulary (5.17),
    with which text falls into other tokens and perplexity into the thousands, and its start token left out (5.22).
    """
    kind, made = fields.get("model"), type(tokenizer.backend_tokenizer.model).__name__
    if kind in _SPLITS and made != _SPLITS[kind]:
        return f"it splits words by {made}, the file's kind is {kind}, which is {_SPLITS[kind]}"
    if "add_bos_token" not in fields or "bos_token_id" not in fields:
        return ""
    begins = tokenizer("a")["input_ids"][:1] == [int(fields["bos_token_id"])]
    if begins == bool(fields["add_bos_token"]):
        return ""
    return f"text begins with{'' if begins else 'out'} the start token, in the file with{'out' if begins else ''} it"


def _forget_gguf(model: Any) -> None:
    """The weights are dense by now, but transformers refuses to save a model that remembers its quantised origin."""
    for owner, name in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
        (model.config, "quantization_config"),
    ):
        owner.__dict__.pop(name, None)
