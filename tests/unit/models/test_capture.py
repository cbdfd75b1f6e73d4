"""A model put together again from its parts computes what the whole one does, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from oaem.models.capture import block_arguments, expand, run_block
from oaem.models.load import block_count, embed_tokens, load_block, load_model
from oaem.runtime.seeds import generator
from tests.conftest import FAMILIES

MODELS = [*((family, True) for family in FAMILIES), ("llama", False), ("qwen2", False)]
LENGTH = 37


def draw_tokens(count: int) -> torch.Tensor:
    return torch.randint(320, (count, LENGTH), generator=generator(1, "tokens"), dtype=torch.int32)


@torch.no_grad()
def logits_block_by_block(folder: Path, tokens: torch.Tensor, dtype: torch.dtype, batch: int) -> torch.Tensor:
    """The model's logits, computed as the pipeline walks through it."""
    hidden = embed_tokens(folder, tokens, dtype, "cpu")
    for index in range(block_count(folder)):
        block = load_block(folder, index, dtype, "cpu")
        hidden = run_block(block, hidden, block_arguments(folder, index, tokens.shape[1], dtype, "cpu"), batch)
    whole = load_model(folder, dtype, "cpu")
    return whole.lm_head(whole.model.norm(hidden))


@pytest.mark.parametrize(("family", "tied"), MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_by_block_equals_the_whole_model(
    tiny_model: Callable[[str, bool], Path], family: str, tied: bool, dtype: torch.dtype
) -> None:
    """The oracle loads and runs the model as anybody would, with nothing of this project."""
    folder, tokens = tiny_model(family, tied), draw_tokens(4)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        expected = whole(tokens.long(), use_cache=False).logits
    assert torch.equal(logits_block_by_block(folder, tokens, dtype, batch=4), expected)
    own = load_model(folder, dtype, "cpu")
    for (name, buffer), (other, wanted) in zip(own.named_buffers(), whole.named_buffers(), strict=True):
        assert name == other and buffer.dtype == wanted.dtype and torch.equal(buffer, wanted), name


def test_gemmas_blocks_are_called_differently(tiny_model: Callable[[str, bool], Path]) -> None:
    """Sliding blocks get a mask of their window and their own rotary embedding; the others plain causal attention."""
    folder = tiny_model("gemma3_text", True)
    sliding, full = (block_arguments(folder, index, LENGTH, torch.float32, "cpu") for index in (0, 1))
    near = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() & torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(-7)
    assert torch.equal(sliding["attention_mask"], near[None, None])
    assert full["attention_mask"] is None
    assert not torch.equal(sliding["position_embeddings"][0], full["position_embeddings"][0])
    short = block_arguments(folder, 0, 7, torch.float32, "cpu")
    assert short["attention_mask"] is None, "a window as long as the sequence hides nothing"


def test_rotary_embeddings_that_follow_the_length(tiny_model: Callable[[str, bool], Path], tmp_path: Path) -> None:
    """Phi-3's for long texts: other frequencies as soon as a sequence is longer than those it was trained on."""
    folder = tmp_path / "long"
    shutil.copytree(tiny_model("phi3", True), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"original_max_position_embeddings": 16}
    config["rope_parameters"] |= {"rope_type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0, 4.0, 9.0]}
    (folder / "config.json").write_text(json.dumps(config))
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for tokens in (draw_tokens(2), draw_tokens(2)[:, :12]):
        with torch.no_grad():
            expected = whole(tokens.long(), use_cache=False).logits
        assert torch.equal(logits_block_by_block(folder, tokens, torch.float32, batch=2), expected)
    cosines = [
        block_arguments(folder, 0, length, torch.float32, "cpu")["position_embeddings"][0] for length in (12, LENGTH)
    ]
    assert not torch.allclose(cosines[0], cosines[1][:, :12]), "the length must matter for this test to mean something"


def test_batch_size_does_not_matter(tiny_llama: Path) -> None:
    tokens = draw_tokens(5)
    one = logits_block_by_block(tiny_llama, tokens, torch.float32, batch=1)
    two = logits_block_by_block(tiny_llama, tokens, torch.float32, batch=2)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_sliding_layers_get_their_own_masks(tiny_qwen2: Path, tmp_path: Path) -> None:
    """A model whose blocks differ in what they are called with."""
    folder = tmp_path / "sliding"
    shutil.copytree(tiny_qwen2, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    config["layer_types"] = ["full_attention", "sliding_attention", "sliding_attention"]
    (folder / "config.json").write_text(json.dumps(config))
    tokens = draw_tokens(2)
    with torch.no_grad():
        expected = load_model(folder, torch.float32, "cpu")(tokens.long(), use_cache=False).logits
        full = load_model(tiny_qwen2, torch.float32, "cpu")(tokens.long(), use_cache=False).logits
    assert not torch.allclose(full, expected), "the window must matter for this test to mean something"
    assert torch.equal(logits_block_by_block(folder, tokens, torch.float32, batch=2), expected)


def test_arguments_hold_no_cache(tiny_llama: Path) -> None:
    arguments = block_arguments(tiny_llama, 1, LENGTH, torch.float32, "cpu")
    assert not {"past_key_values", "use_cache", "hidden_states"} & arguments.keys()
    cos, sin = arguments["position_embeddings"]
    assert cos.shape == sin.shape == (1, LENGTH, 12)


def test_run_block_keeps_the_dtype_and_takes_tuples() -> None:
    class Widening(torch.nn.Module):
        def forward(self, hidden: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, None]:
            return hidden.float() + shift, None

    hidden = torch.zeros(3, 2, 4, dtype=torch.bfloat16)
    output = run_block(Widening(), hidden, {"shift": torch.ones(1, 2, 4)}, batch=2)
    assert output.dtype is torch.bfloat16
    assert torch.equal(output, torch.ones_like(hidden))


def test_expand_reaches_into_nested_arguments() -> None:
    nested = {"pair": (torch.zeros(1, 3), torch.zeros(1, 3, 2)), "none": None, "flag": True, "line": torch.zeros(7)}
    wide = expand(nested, 4)
    assert [t.shape[0] for t in wide["pair"]] == [4, 4]
    assert wide["none"] is None
    assert wide["flag"] is True
    assert wide["line"].shape == (7,)
