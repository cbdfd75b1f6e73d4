"""What block tuning does to attention, where no CUDA device is needed; the fused attention itself is in tests/gpu."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from oaem.models.attention import causal_attention_reference
from oaem.models.attention_switch import has_operators, sliding_mask
from oaem.pv.kernels.cuda import attention as pv_attention
from oaem.quantization.kernels.cuda import attention as module
from oaem.quantization.kernels.cuda.attention import fused_attention


def test_attention_is_replaced_only_where_it_is_plainly_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stand_in(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int) -> Tensor:
        assert window == 0
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


def test_without_torch_s_private_operators_its_public_attention_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block tuning's, to 1e-6 of float64; PV-tuning's refuses a call on a CUDA device that it would take else."""
    assert has_operators("_scaled_dot_product_flash_attention") and not has_operators("_no_such_attention")
    monkeypatch.setattr(module, "_HAS_FLASH", False)
    monkeypatch.setattr(module, "causal_attention", lambda *_: pytest.fail("must not be called"))
    draws = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, 4, 24, 16, generator=draws) for _ in range(3))
    layer = nn.Module()
    found, _ = module._attend(layer, query, key, value, None, scaling=0.25)
    wanted = causal_attention_reference(query.double(), key.double(), value.double(), 0.25)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)
    on_device = SimpleNamespace(is_cuda=True, shape=(1, 4, 64, 16))
    assert pv_attention._fits(on_device)
    monkeypatch.setattr(pv_attention, "_HAS_FLASH", False)
    assert not pv_attention._fits(on_device)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The window of each call that was served by the project's own attention, which gives its queries back."""
    seen: list[int] = []

    def stand_in(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int) -> Tensor:
        seen.append(window)
        return query.transpose(1, 2)

    monkeypatch.setattr(module, "causal_attention", stand_in)
    return seen


def call(mask: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
    """What `_attend` gives for 64 tokens of two sequences, and what torch's own attention would."""
    draws = torch.Generator().manual_seed(1)
    parts = [torch.randn(2, heads, 64, 16, generator=draws) for heads in (4, 4, 4)]
    return (
        module._attend(nn.Module(), *parts, mask, **options)[0],
        sdpa_attention_forward(nn.Module(), *parts, mask, **options)[0],
    )


def test_a_mask_that_says_what_the_window_says_is_not_needed(windows: list[int]) -> None:
    near = sliding_mask(64, 20, torch.device("cpu"))
    call(near, sliding_window=20)
    call(near.expand(2, -1, -1, -1).contiguous(), sliding_window=20)
    call(sliding_mask(64, 64, torch.device("cpu")), sliding_window=64)
    call(sliding_mask(64, 0, torch.device("cpu")))
    assert windows == [20, 20, 0, 0]


def test_a_mask_is_looked_at_once(windows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """For a step that is recorded must not wait for an answer; a mask that was changed is another one."""
    near, looks = sliding_mask(64, 20, torch.device("cpu")).contiguous(), []
    monkeypatch.setattr(torch, "equal", lambda *pair: looks.append(1) or bool((pair[0] == pair[1]).all()))
    for _ in range(3):
        call(near, sliding_window=20)
    assert windows == [20, 20, 20] and len(looks) == 1
    near[0, 0, 30, 29] = False
    found, wanted = call(near, sliding_window=20)
    assert len(windows) == 3 and len(looks) == 2
    torch.testing.assert_close(found, wanted)


def masked(kind: str) -> tuple[Tensor | None, dict[str, Any]]:
    near = sliding_mask(64, 20, torch.device("cpu"))
    padded = near.expand(2, -1, -1, -1).clone()
    padded[0, :, :, :5] = False
    padded[0, :, :5, 0] = True  # a query must see something
    return {
        "padding": (padded, {"sliding_window": 20}),
        "another window": (near, {"sliding_window": 21}),
        "a window that is not named": (near, {}),
        "a window without a mask": (None, {"sliding_window": 20}),
        "numbers": (torch.where(near, 0.0, float("-inf")), {"sliding_window": 20}),
        "a bias": (near, {"sliding_window": 20, "position_bias": torch.ones(1, 4, 64, 64)}),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["padding", "another window", "a window that is not named", "a window without a mask", "numbers", "a bias"],
)
def test_any_other_mask_goes_to_torchs_attention(windows: list[int], kind: str) -> None:
    mask, options = masked(kind)
    found, wanted = call(mask, **options)
    assert not windows
    torch.testing.assert_close(found, wanted)


def test_windows_need_whole_tiles_and_known_widths(windows: list[int]) -> None:
    for tokens, width, ours in ((64, 16, True), (64, 256, True), (70, 16, False), (64, 24, False)):
        parts = [torch.randn(1, 2, tokens, width) for _ in range(3)]
        mask = sliding_mask(tokens, 20, torch.device("cpu"))
        module._attend(nn.Module(), *parts, mask, sliding_window=20)
        assert len(windows) == int(ours), (tokens, width)
        windows.clear()
