"""What a call of attention asks for, and which masks transformers makes for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    create_chunked_causal_mask,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from oaem.models.attention_switch import is_causal, sliding_mask, switch_attention, window_of
from oaem.models.load import load_model

TOKENS = torch.arange(60).view(2, 30)


@pytest.mark.parametrize("window", [1, 2, 7, 29])
def test_the_mask_of_a_window_is_that_of_transformers(window: int) -> None:
    wanted = sdpa_mask(1, 30, 30, mask_function=sliding_window_causal_mask_function(window), local_size=window)
    assert torch.equal(sliding_mask(30, window, torch.device("cpu")), wanted)


def test_without_a_window_the_mask_is_causal() -> None:
    wanted = sdpa_mask(1, 30, 30, allow_is_causal_skip=False)
    assert torch.equal(sliding_mask(30, 0, torch.device("cpu")), wanted)


def test_a_window_counts_where_it_hides_something() -> None:
    query, key = torch.zeros(1, 4, 6, 8), torch.zeros(1, 2, 6, 8)
    windows: list[dict[str, Any]] = [{}, {"sliding_window": None}, {"sliding_window": 6}, {"sliding_window": 5}]
    assert [window_of(key, options) for options in windows] == [0, 0, 0, 5]
    layer = torch.nn.Module()
    assert is_causal(layer, query, key, {"sliding_window": 5})
    for more in ({"softcap": 50.0}, {"dropout": 0.1}, {"is_causal": False}, {"position_bias": torch.ones(1)}):
        assert not is_causal(layer, query, key, {"sliding_window": 5, **more})
    assert not is_causal(layer, query[:, :, -1:], key, {})
    layer.is_causal = False
    assert not is_causal(layer, query, key, {"sliding_window": 5})


@pytest.fixture
def masks_of(tiny_model: Callable[[str, bool], Path]) -> Callable[..., list[tuple[Tensor | None, Any]]]:
    """masks_of(family, **arguments): the mask and the window that each block's attention is called with."""

    def attend(*parts: Any, **options: Any) -> tuple[Tensor, None]:
        seen.append((parts[4], options.get("sliding_window")))
        return sdpa_attention_forward(*parts, **options)

    def run(family: str, **arguments: Any) -> list[tuple[Tensor | None, Any]]:
        model = load_model(tiny_model(family, True), torch.float32, "cpu")
        switch_attention(model, "test_windows", attend, windows_by_option=True)
        seen.clear()
        with torch.no_grad():
            model(TOKENS, **arguments)
        return seen

    seen: list[tuple[Tensor | None, Any]] = []
    return run


def test_a_plain_window_comes_without_a_mask(masks_of: Callable[..., Any]) -> None:
    assert masks_of("mistral", use_cache=False) == 3 * [(None, 20)]
    assert masks_of("gemma3_text", use_cache=False) == [(None, 8), (None, None), (None, 8)]


def test_whatever_says_more_than_a_window_comes_as_a_mask(masks_of: Callable[..., Any]) -> None:
    """Padding, several texts in one sequence, a mask that the caller made."""
    padding = torch.ones_like(TOKENS)
    padding[0, :5] = 0
    places = torch.cat([torch.arange(12), torch.arange(18)])[None].expand(2, -1)
    own = torch.ones(2, 1, 30, 30, dtype=torch.bool).tril()
    for arguments in ({"attention_mask": padding}, {"position_ids": places}, {"attention_mask": own}):
        for mask, window in masks_of("mistral", use_cache=False, **arguments):
            assert mask is not None and mask.shape == (2, 1, 30, 30) and window == 20


def test_chunks_are_no_windows(tiny_model: Callable[[str, bool], Path]) -> None:
    model = load_model(tiny_model("mistral", True), torch.float32, "cpu")
    switch_attention(model, "test_windows", sdpa_attention_forward, windows_by_option=True)
    model.config.attention_chunk_size = 10
    mask = create_chunked_causal_mask(model.config, torch.zeros(1, 30, 48), None, None)
    assert mask is not None and not mask[0, 0, 10, 9]


def test_masks_are_torchs_own_where_nobody_asks_for_less(tiny_llama: Path) -> None:
    switch_attention(load_model(tiny_llama, torch.float32, "cpu"), "test_masks", sdpa_attention_forward)
    assert ALL_MASK_ATTENTION_FUNCTIONS["test_masks"] is ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
