"""What block tuning does to attention, where no CUDA device is needed; the fused attention itself is in tests/gpu."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from oaem.quantization.kernels.cuda import attention as module
from oaem.quantization.kernels.cuda.attention import fused_attention


def test_attention_is_replaced_only_where_it_is_plainly_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stand_in(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        seen.append(query.shape)
        attended = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return attended.transpose(1, 2)

    monkeypatch.setattr(module, "causal_attention", stand_in)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    block, hidden = LlamaDecoderLayer(config, 0), torch.randn(1, 40, 64)
    arguments = {"position_embeddings": LlamaRotaryEmbedding(config)(hidden, torch.arange(40)[None])}
    plain = block(hidden, attention_mask=None, **arguments)
    with fused_attention(block):
        replaced = block(hidden, attention_mask=None, **arguments)
        # A mask says more than "causal": torch's own attention must serve it.
        mask = torch.zeros(1, 1, 40, 40)
        masked = block(hidden, attention_mask=mask, **arguments)
    assert config._attn_implementation == "sdpa"
    assert seen == [(1, 4, 40, 16)]
    torch.testing.assert_close(replaced, plain)
    torch.testing.assert_close(masked, block(hidden, attention_mask=mask, **arguments))
    assert not torch.allclose(masked, plain)
