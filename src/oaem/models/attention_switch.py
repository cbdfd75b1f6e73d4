"""How a transformers model or block comes to attend through a function of this project instead of torch's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Options of a call that a plain causal attention knows nothing of.
UNUSUAL = ("dropout", "position_bias", "cache", "softcap")


def switch_attention(
    module: nn.Module, name: str, attend: Callable[..., tuple[Tensor, Any]], windows_by_option: bool = False
) -> list[Any]:
    """Let `module` attend through `attend`, known to transformers as `name`, where it would through torch's own.

    For good: the configurations that say so are changed, and returned for who wants to change them back to "sdpa".
    windows_by_option: a model makes no mask of a plain sliding window, so that `attend` knows it by its options alone.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    masks = _mask_unless_sliding if windows_by_option else ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, masks)
    switched = []
    for part in module.modules():
        config: Any = getattr(part, "config", None)
        if getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = name
            switched.append(config)
    return switched


def _mask_unless_sliding(**call: Any) -> Tensor | None:
    """What transformers' mask function for torch's attention gives, or None where it would say "sliding window" alone.

    transformers allows a mask to be left out where nothing but the order of the tokens and a local size makes it: not
    for packed sequences, nor where a model changes it. The local size of attention in chunks is no window.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    window = getattr(call.get("config"), "sliding_window", None)
    sliding = window is not None and call.get("local_size") == window and call.get("allow_is_causal_skip") is True
    whole = call.get("attention_mask") is None and call.get("q_length") == call.get("kv_length")
    if sliding and whole and (call.get("q_offset"), call.get("kv_offset")) == (0, 0):
        return None
    mask: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](**call)
    return mask


def has_operators(*names: str) -> bool:
    """Whether this PyTorch has all these private operators of its own; without them its public attention must do."""
    return all(hasattr(torch.ops.aten, name) for name in names)


def is_plainly_causal(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, options: Mapping[str, Any]
) -> bool:
    """Whether a call asks for softmax(scaling Q K^T) V over the keys up to each query's own place, and no more."""
    return attention_mask is None and not window_of(key, options) and is_causal(module, query, key, options)


def is_causal(module: nn.Module, query: Tensor, key: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether a call is plainly causal but for what a mask or a sliding window hides."""
    if options.get("is_causal") is False or not getattr(module, "is_causal", True):
        return False
    unusual = (options.get(name) for name in UNUSUAL)
    return bool(key.shape[2] == query.shape[2]) and not any(isinstance(each, Tensor) or each for each in unusual)


def fits(query: Tensor) -> bool:
    """Whether kernels/cuda/ can serve queries [batch, heads, tokens, d]: whole tiles, d a power of two up to 256."""
    return query.shape[2] % 64 == 0 and query.shape[3] in (16, 32, 64, 128, 256)


def window_of(key: Tensor, options: Mapping[str, Any]) -> int:
    """How many keys, its own the last, a query of a call sees by its sliding window; 0 if that hides none of `key`.

    Models name their window whatever the length of the sequence; one as long as the sequence hides nothing.
    """
    window: int = options.get("sliding_window") or 0
    return window if window < key.shape[2] else 0


def sliding_mask(tokens: int, window: int, device: torch.device) -> Tensor:
    """What each query sees of the keys up to its own place, bool [1, 1, tokens, tokens]: all of them if window is 0."""
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    return (causal.triu(1 - window) if window else causal)[None, None]
