from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from oaem.quantization import causal_attention as module
from oaem.quantization.causal_attention import causal_attention, chunked_attention


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 16)


def test_equals_torch_with_its_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 40, 8, generator=generator, dtype=torch.float64).requires_grad_() for heads in (6, 2, 2)
    )
    found = causal_attention(query, key, value, 0.3)
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    expected = expected.transpose(1, 2)
    torch.testing.assert_close(found, expected)
    incoming = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for ours, torchs in zip(
        torch.autograd.grad(found, (query, key, value), incoming),
        torch.autograd.grad(expected, (query, key, value), incoming),
        strict=True,
    ):
        torch.testing.assert_close(ours, torchs)


def test_a_real_block_gives_the_same_output_and_keeps_its_configuration() -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    block, hidden = LlamaDecoderLayer(config, 0), torch.randn(1, 40, 64)
    arguments = {"position_embeddings": LlamaRotaryEmbedding(config)(hidden, torch.arange(40)[None])}
    plain = block(hidden, attention_mask=None, **arguments)
    with chunked_attention(block):
        chunked = block(hidden, attention_mask=None, **arguments)
        # A mask says more than "causal": torch's own attention must serve it.
        mask = torch.zeros(1, 1, 40, 40)
        masked = block(hidden, attention_mask=mask, **arguments)
    assert config._attn_implementation == "sdpa"
    torch.testing.assert_close(chunked, plain)
    torch.testing.assert_close(masked, block(hidden, attention_mask=mask, **arguments))
    assert not torch.allclose(masked, plain)
