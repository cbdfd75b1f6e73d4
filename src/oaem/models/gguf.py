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


def convert_gguf(file: Path, target: Path, dtype: str, mend: Callable[[Any], None]) -> None:
    """Write the model in `file` to the folder `target`, its weights dense in `dtype`; the file itself stays as it is.

    transformers turns the quantised weights into dense ones. `mend` corrects the tokenizer where transformers does not
    read it right. UserError if the package gguf is missing, or the file is not of an architecture that is read here.
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
            _name_special_tokens(tokenizer, file)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(f"{file}: transformers cannot read a model from this GGUF file ({error}).") from None
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


def _name_special_tokens(tokenizer: Any, file: Path) -> None:
    """Give the tokenizer the special tokens of its file: transformers 5.17 takes the start token for the end."""
    from gguf import GGUFReader

    fields = GGUFReader(str(file)).fields
    for kind, name in _SPECIAL_TOKENS.items():
        field = fields.get(f"tokenizer.ggml.{kind}_token_id")
        if field is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(int(field.contents())))


def _forget_gguf(model: Any) -> None:
    """The weights are dense by now, but transformers refuses to save a model that remembers its quantised origin."""
    for owner, name in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
        (model.config, "quantization_config"),
    ):
        owner.__dict__.pop(name, None)
