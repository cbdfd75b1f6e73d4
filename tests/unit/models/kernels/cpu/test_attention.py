"""The CPU's attention against the definition and torch's own, alone and inside a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from oaem.models.attention import causal_attention_reference, use_fast_attention
from oaem.models.attention_switch import is_plainly_causal
from oaem.models.kernels.cpu import attention as room
from oaem.models.kernels.cpu.attention import NAME, causal_attention
from oaem.models.load import load_model
from oaem.runtime.seeds import generator
from tests.conftest import BLOCKS, FAMILIES

WIDTH = 16


def _inputs(tokens: int, heads: int, key_heads: int, dtype: torch.dtype, batch: int = 2) -> tuple[list[Tensor], Tensor]:
    """Queries, keys, values as a model hands them over (views that are not contiguous) and an upstream gradient."""
    draws = generator(1, "attention", tokens)
    parts = [
        torch.randn(batch, tokens, count, WIDTH, generator=draws, dtype=torch.float64).transpose(1, 2).to(dtype)
        for count in (heads, key_heads, key_heads)
    ]
    upper = torch.randn(batch, tokens, heads, WIDTH, generator=draws, dtype=torch.float64).to(dtype)
    return [part.requires_grad_() for part in parts], upper


def _all(attention: Callable[..., Tensor], inputs: list[Tensor], upper: Tensor) -> list[Tensor]:
    result = attention(*inputs, WIDTH**-0.5)
    return [result.detach(), *torch.autograd.grad(result, inputs, upper)]


def _error(found: Tensor, reference: Tensor) -> float:
    return float((found.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("tokens", [1, 7, 8, 33])
def test_equals_the_definition(monkeypatch: pytest.MonkeyPatch, heads: int, key_heads: int, tokens: int) -> None:
    """Values and gradients in float32 to 1e-6, relative, in chunks of eight queries."""
    monkeypatch.setattr(room, "CHUNK", 8)
    inputs, upper = _inputs(tokens, heads, key_heads, torch.float32)
    exact = [part.detach().double().requires_grad_() for part in inputs]
    wanted = _all(causal_attention_reference, exact, upper.double())
    for part, reference in zip(_all(causal_attention, inputs, upper), wanted, strict=True):
        assert part.dtype == torch.float32 and part.shape == reference.shape
        # With one key the weight is 1, and neither query nor key has a gradient.
        assert _error(part, reference) < 1e-6 if reference.norm() > 1e-9 else float(part.norm()) < 1e-6


def test_bfloat16_is_nearer_to_the_definition_than_torch_s_own() -> None:
    """Only inputs and outputs are rounded, so the error is one rounding: 2^-9 of an entry at most, less on average."""
    inputs, upper = _inputs(200, 6, 2, torch.bfloat16)

    def torchs(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        options = {"is_causal": True, "scale": scaling, "enable_gqa": True}
        return functional.scaled_dot_product_attention(query, key, value, **options).transpose(1, 2)

    exact = [part.detach().double().requires_grad_() for part in inputs]
    wanted = _all(causal_attention_reference, exact, upper.double())
    ours, theirs = _all(causal_attention, inputs, upper), _all(torchs, inputs, upper)
    for part, other, reference in zip(ours, theirs, wanted, strict=True):
        assert part.dtype == torch.bfloat16
        assert _error(part, reference) < 2**-9 and _error(part, reference) < _error(other, reference)


def test_gives_the_same_bits_every_time() -> None:
    inputs, upper = _inputs(150, 6, 2, torch.bfloat16)
    first, second = _all(causal_attention, inputs, upper), _all(causal_attention, inputs, upper)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padded", [False, True])
def test_a_model_says_the_same_with_it(
    tiny_model: Callable[[str, bool], Path], monkeypatch: pytest.MonkeyPatch, family: str, padded: bool
) -> None:
    """Logits in float32 to 1e-5; a mask, padding or a window shorter than the text, is obeyed by torch's attention."""
    seen: list[int] = []
    original = room.causal_attention
    monkeypatch.setattr(room, "causal_attention", lambda *a: seen.append(1) or original(*a))
    model = load_model(tiny_model(family, True), torch.float32, "cpu")
    tokens = torch.randint(320, (2, 30), generator=generator(2, "tokens"))
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    with torch.no_grad():
        expected = model(tokens, attention_mask=mask if padded else None).logits
        use_fast_attention(model)
        use_fast_attention(model)
        found = model(tokens, attention_mask=mask if padded else None).logits
    assert model.config._attn_implementation == NAME
    # Of three blocks: all, those of Gemma without a window, none of Mistral's, whose window is short.
    assert len(seen) == (0 if padded else {"gemma3_text": 1, "mistral": 0}.get(family, BLOCKS))
    valid = mask.bool() if padded else torch.ones_like(mask, dtype=torch.bool)
    torch.testing.assert_close(found[valid], expected[valid], rtol=1e-5, atol=1e-5)


def test_another_attention_is_left_alone(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, torch.float32, "cpu")
    model.config._attn_implementation = "eager"
    use_fast_attention(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("options", "mask", "plain"),
    [
        ({"scaling": 0.3}, False, True),
        ({"sliding_window": None}, False, True),
        ({"sliding_window": 6}, False, True),
        ({"sliding_window": 5}, False, False),
        ({"softcap": 50.0}, False, False),
        ({"dropout": 0.1}, False, False),
        ({"is_causal": False}, False, False),
        ({}, True, False),
    ],
)
def test_what_counts_as_plainly_causal(options: dict[str, object], mask: bool, plain: bool) -> None:
    query, key = torch.zeros(1, 4, 6, 8), torch.zeros(1, 2, 6, 8)
    attention_mask = torch.ones(1, 1, 6, 6, dtype=torch.bool) if mask else None
    assert is_plainly_causal(torch.nn.Module(), query, key, attention_mask, options) is plain
    assert not is_plainly_causal(torch.nn.Module(), query[:, :, -1:], key, attention_mask, options)
