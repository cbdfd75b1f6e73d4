"""Tiny random models in the Hugging Face format, with a tokenizer trained here; for unit and fault tests only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The Triton kernels are proven here by its interpreter, on a device by `make test-gpu`.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from oaem.models.families import BUILT_IN
from oaem.runtime.seeds import generator

if TYPE_CHECKING:
    from tests.shared import MadeOnce

torch.set_num_threads(1)
pytest_plugins = ["tests.reliability", "tests.shared"]

# 48 and 96 are divided by groups of 2, 3, 4, 6, 8, 12 and 16.
HIDDEN, MLP, BLOCKS, VOCABULARY = 48, 96, 3, 320
FAMILIES = tuple(family.name for family in BUILT_IN)
# What sets a family apart from Llama, each in the way that could go wrong: windows shorter than the tests' sequences
# (Mistral, and Gemma in every second block) and longer ones (Phi-3), heads that do not add up to the hidden size,
# attention that is not scaled by the head's width, a rotary embedding of half a head.
PECULIARITIES: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": 20},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 8, "sliding_window_pattern": 2},
    "phi3": {"sliding_window": 64, "partial_rotary_factor": 0.5},
}
TEXT = """The river rises in the hills above the old mill and runs for twelve miles through meadows, past three villages
and under a stone bridge, before it meets the sea. Every spring the water floods the lower fields; every autumn it is so
low that children walk across it. In 1893 the town built a weir, and a second one in 1907, to turn the wheels of two
paper mills. How do you make paper by hand? First, tear old sheets into small pieces. Second, soak them in warm water.
Third, beat them to a pulp, spread the pulp on a frame, press it, and let it dry."""


def train_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with `bos` it begins every text with one, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_tiny_model(folder: Path, family: str, tied: bool, blocks: int = BLOCKS) -> Path:
    """A random `family` model with its tokenizer in `folder`, the same bits on every call."""
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": MLP, "num_hidden_layers": blocks,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    config = AutoConfig.for_model(family, **(shape | PECULIARITIES.get(family, {})))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draws = generator(0, "tiny", family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draws)
            # A norm begins as transformers makes it: at one, or at zero where it multiplies by 1 + weight.
            parameter.copy_(parameter + 0.1 * noise if name.endswith("norm.weight") else 0.15 * noise)
    model.save_pretrained(folder)
    train_tokenizer(bos=family == "llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(made_once: MadeOnce) -> Callable[[str, bool], Path]:
    """tiny_model(family, tied): the folder of a tiny random model, made once a session and not to be changed."""

    def make(family: str, tied: bool = True) -> Path:
        name = f"{family}-{'tied' if tied else 'untied'}"
        return made_once(name, lambda folder: save_tiny_model(folder, family, tied))

    return make


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[[str, bool], Path]) -> Path:
    """A tiny Llama with tied embeddings."""
    return tiny_model("llama", True)


@pytest.fixture(scope="session")
def tiny_llama_untied(tiny_model: Callable[[str, bool], Path]) -> Path:
    """A tiny Llama with an output embedding of its own."""
    return tiny_model("llama", False)


@pytest.fixture(scope="session")
def tiny_qwen2(tiny_model: Callable[[str, bool], Path]) -> Path:
    """A tiny Qwen2, whose k, q and v have biases, with tied embeddings."""
    return tiny_model("qwen2", True)


@pytest.fixture(scope="session")
def tiny_qwen2_untied(tiny_model: Callable[[str, bool], Path]) -> Path:
    """A tiny Qwen2 with an output embedding of its own."""
    return tiny_model("qwen2", False)
