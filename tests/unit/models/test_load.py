"""Loading holds no more than one copy of a model, and gives what transformers' own loader gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from oaem.models.load import load_model
from tests.conftest import train_tokenizer

MEASURE = """
import json, sys
from pathlib import Path
import torch
from oaem.config.schema import ModelSource
from oaem.models.load import embed_tokens, load_block, load_config, load_model
from oaem.models.source import materialise

def peak():
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

def grown(use):
    # What is returned stays alive until the peak is read.
    before, kept = peak(), use()
    return peak() - before

folder, target, blocks = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
source, tokens = ModelSource(source="folder", label="x", path=folder), torch.zeros(1, 8, dtype=torch.int32)
materialise(ModelSource(source="folder", label="x", path=sys.argv[4]), target + "-warm")
uses = {
    "materialise": lambda: materialise(source, target) and None,
    "embed": lambda: embed_tokens(target, tokens, torch.float32, "cpu"),
    "blocks": lambda: [load_block(target, index, torch.float32, "cpu") and None for index in range(blocks)],
    "elsewhere": lambda: load_model(target, torch.float32, "meta"),
    "whole": lambda: load_model(target, torch.float32, "cpu"),
}
print(json.dumps({name: grown(use) for name, use in uses.items()}))
"""


@pytest.mark.slow
def test_memory_stays_below_a_copy_of_the_model(tmp_path: Path, tiny_llama: Path) -> None:
    """In a fresh process; the stored bfloat16 is read as float32, so that nothing can be a view of the file."""
    blocks = 8
    config = LlamaConfig(
        vocab_size=12_000, hidden_size=512, intermediate_size=3072, num_hidden_layers=blocks, num_attention_heads=8,
        num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    copy = 4 * sum(parameter.numel() for parameter in model.parameters())
    block = 4 * sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    model.save_pretrained(tmp_path / "model", max_shard_size="40MB")
    train_tokenizer(bos=True).save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "model"), str(tmp_path / "out"), str(blocks)]
    done = subprocess.run(
        [*command, str(tiny_llama)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    grown = json.loads(done.stdout.splitlines()[-1])
    assert copy > 200_000_000, "small against what the process itself needs"
    # Each use may add to the peak of those before it: embedding and one block, read and converted.
    assert grown["materialise"] < 0.15 * copy
    assert grown["embed"] + grown["blocks"] + grown["elsewhere"] < 2 * block + 0.15 * copy
    assert grown["whole"] < 1.15 * copy


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_transformers_own(
    tiny_model: Callable[[str, bool], Path], family: str, tied: bool, dtype: torch.dtype
) -> None:
    folder = tiny_model(family, tied)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    found = load_model(folder, dtype, "cpu")
    one, two = expected.state_dict(), found.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)
    for name, buffer in expected.named_buffers():
        assert torch.equal(buffer, found.get_buffer(name))
    assert [(name, p.requires_grad) for name, p in expected.named_parameters()] == [
        (name, p.requires_grad) for name, p in found.named_parameters()
    ]
    assert (found.lm_head.weight is found.model.embed_tokens.weight) == tied
    assert not any(module.training for module in found.modules())
    tokens = torch.arange(24).view(2, 12)
    assert torch.equal(expected(tokens).logits, found(tokens).logits)
    assert found.generate(tokens[:1], max_new_tokens=2, do_sample=False).shape == (1, 14)


def test_writing_to_a_loaded_model_leaves_its_file_alone(tiny_llama: Path) -> None:
    """Where nothing is converted, weights are views of the file."""
    before = (tiny_llama / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in load_model(tiny_llama, torch.float32, "cpu").parameters():
            parameter.zero_()
    assert (tiny_llama / "model.safetensors").read_bytes() == before
