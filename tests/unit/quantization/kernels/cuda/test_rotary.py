"""The fused rotary embedding in Triton, through Triton's interpreter, against the formula and its autograd."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("tests.unit.interpreter")

from oaem.quantization.kernels.cuda.rotary import fused_rotary, rotary, rotate, turns_halves
from tests.unit.interpreter import randn


def states(batch: int, heads: int, tokens: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    """As a model makes them: heads split off the columns of a product."""
    return randn(batch, tokens, heads, width, seed=seed).to(dtype).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "query_heads", "key_heads", "width", "angle_batch"), [(1, 3, 1, 8, 1), (2, 4, 2, 12, 1), (2, 1, 1, 6, 2)]
)
def test_queries_keys_and_their_gradients(
    dtype: torch.dtype, batch: int, query_heads: int, key_heads: int, width: int, angle_batch: int
) -> None:
    parts = [states(batch, heads, 5, width, dtype, heads) for heads in (query_heads, key_heads)]
    cos, sin = randn(angle_batch, 5, width, seed=7), randn(angle_batch, 5, width, seed=8)
    incoming = [randn(*part.shape, seed=9).to(dtype) for part in parts]
    exact = [part.detach().double().requires_grad_() for part in parts]
    expected = [rotate(part, cos.double(), sin.double()) for part in exact]
    found = rotary(*parts, cos, sin)
    gradients = torch.autograd.grad(found, parts, incoming)
    exact_gradients = torch.autograd.grad(expected, exact, [part.double() for part in incoming])
    for ours, wanted in zip((*found, *gradients), (*expected, *exact_gradients), strict=True):
        assert ours.dtype == dtype
        # One rounding to the result's dtype.
        tolerance = 1e-6 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(ours.double(), wanted, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3"])
def test_what_the_models_of_transformers_compute_is_known_for_the_same(family: str) -> None:
    own = importlib.import_module(f"transformers.models.{family}.modeling_{family}").apply_rotary_pos_emb
    assert turns_halves(own)  # Phi-3 too, for a whole head


@pytest.mark.parametrize("family", ["cohere", "glm"])
def test_a_model_that_turns_neighbours_is_left_alone(family: str) -> None:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    assert not turns_halves(module.apply_rotary_pos_emb)


def test_a_function_of_other_arguments_is_left_alone() -> None:
    assert not turns_halves(lambda query, angles: (query, query))


class Part(nn.Module):
    pass


def test_only_whole_heads_in_float32_angles_are_taken_and_everything_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def own(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        calls.append(cos.shape)
        width = cos.shape[-1]
        turned = (rotate(part[..., :width], cos, sin) for part in (query, key))
        query, key = (torch.cat([new, old[..., width:]], -1) for new, old in zip(turned, (query, key), strict=True))
        return query, key

    here = sys.modules[__name__]
    monkeypatch.setattr(here, "apply_rotary_pos_emb", own, raising=False)
    parts = [states(1, heads, 5, 8, torch.float32, heads) for heads in (2, 1)]
    with fused_rotary(nn.Sequential(Part())):
        calls.clear()
        call = here.apply_rotary_pos_emb
        half, whole = randn(1, 5, 4), randn(1, 5, 8)
        taken = call(*parts, whole, whole)
        assert calls == []
        for cos, options in ((half, {}), (whole.bfloat16(), {}), (whole, {"unsqueeze_dim": 1})):
            call(*parts, cos, cos, **options)
        assert calls == [half.shape, whole.shape, whole.shape]
    assert here.apply_rotary_pos_emb is own
    torch.testing.assert_close(taken, own(*parts, whole, whole))
