"""Causal attention of PV-tuning on a CUDA device: fused, in bfloat16, with the same bits on every run.

Forward by torch's own kernels, which are reproducible, or, under a sliding window, which they do not know, by
`windowed_attention`; backward by `attention_gradients`. Both are operators of their own, so that a compiler takes them
as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from oaem.models.attention_switch import fits, has_operators, is_causal, sliding_mask, switch_attention, window_of

NAME = "oaem_pv_causal"
_HAS_CUDNN = has_operators("_scaled_dot_product_cudnn_attention")
_HAS_FLASH = has_operators("_scaled_dot_product_flash_attention")


def use_fused_attention(model: nn.Module) -> None:
    """Let a transformers model on a CUDA device attend through here where it would use torch's own; for good.

    A compiler cannot look into a mask, so windows are known by the option that tells them to flash attention, in the
    models that transformers lets run with that.
    """
    switch_attention(model, NAME, _attend, windows_by_option=getattr(model, "_supports_flash_attn", False))


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    window = window_of(key, options)
    plain = attention_mask is None and is_causal(module, query, key, options)
    # Queries and keys come out of the rotary embedding in float32; values have the dtype of the products.
    if not plain or value.dtype != torch.bfloat16 or not _fits(query):
        if attention_mask is None and window:
            attention_mask = sliding_mask(key.shape[2], window, key.device)
        # Plain operations: torch's other fused ones give other bits on every run.
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return result
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    attended, _ = attention(*(part.bfloat16() for part in (query, key, value)), scaling, window)
    return attended.transpose(1, 2), None


def _fits(query: Tensor) -> bool:
    return _HAS_FLASH and query.is_cuda and fits(query)


@torch.library.custom_op("oaem::pv_attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int) -> tuple[Tensor, Tensor]:
    """softmax(scaling Q K^T) V over the keys up to each query's own place, and the log-sums of the scaled scores.

    query: bfloat16 [batch, heads, tokens, d]; key, value: [batch, key heads, tokens, d], for a CUDA device. window: how
    many keys, its own the last, a query sees; 0 for all. Returns bfloat16 [batch, heads, tokens, d], in memory
    [batch, tokens, heads, d], and float32 [batch, heads, tokens].
    """
    if window:
        from oaem.models.kernels.cuda.windowed_attention import windowed_attention_triton

        return windowed_attention_triton(query, key, value, scaling, window)
    # cuDNN's takes heads wider than 128 on some devices and in some versions only.
    if _HAS_CUDNN and query.shape[3] <= 128 and torch.cuda.get_device_capability(query.device)[0] >= 9:
        result, logs, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, True, 0.0, True, False, scale=scaling
        )
    else:
        result, logs, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, is_causal=True, scale=scaling
        )
    return _by_token(result), logs.reshape(query.shape[:3]).clone()


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, width = query.shape
    result = query.new_empty(batch, tokens, heads, width).transpose(1, 2)
    return result, query.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("oaem::pv_attention_gradients", mutates_args=())
def attention_gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, result: Tensor, logs: Tensor, scaling: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What `attention_gradients.attention_gradients_triton` says."""
    from oaem.models.kernels.cuda.attention_gradients import attention_gradients_triton

    return attention_gradients_triton(gradient, query, key, value, result, logs, scaling, window)


@attention_gradients.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, result: Tensor, logs: Tensor, scaling: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return tuple(  # type: ignore[return-value]
        part.new_empty(part.shape[0], part.shape[2], part.shape[1], part.shape[3]).transpose(1, 2)
        for part in (query, key, value)
    )


def _by_token(result: Tensor) -> Tensor:
    return result.transpose(1, 2).contiguous().transpose(1, 2)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, ctx.scaling, ctx.window = inputs
    ctx.save_for_backward(query, key, value, *output)


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*attention_gradients(gradient, *ctx.saved_tensors, ctx.scaling, ctx.window), None, None)


attention.register_autograd(_backward, setup_context=_keep)
