"""How a transformers model or block comes to attend through a function of this project instead of torch's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Options of a call that a plain causal attention knows nothing of.
UNUSUAL = ("dropout", "position_bias", "cache", "softcap")


def switch_attention(module: nn.Module, name: str, attend: Callable[..., tuple[Tensor, Any]]) -> list[Any]:
    """Let `module` attend through `attend`, known to transformers as `name`, where it would through torch's own.

    For good: the configurations that say so are changed, and returned for who wants to change them back to "sdpa".
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    switched = []
    for part in module.modules():
        config: Any = getattr(part, "config", None)
        if getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = name
            switched.append(config)
    return switched


def has_operators(*names: str) -> bool:
    """Whether this PyTorch has all these private operators of its own; without them its public attention must do."""
    return all(hasattr(torch.ops.aten, name) for name in names)


def is_plainly_causal(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, options: Mapping[str, Any]
) -> bool:
    """Whether a call asks for softmax(scaling Q K^T) V over the keys up to each query's own place, and no more."""
    causal = attention_mask is None and key.shape[2] == query.shape[2] and getattr(module, "is_causal", True)
    # Models name their window whatever the length of the sequence; one as long as the sequence hides nothing.
    causal = causal and (options.get("sliding_window") or key.shape[2]) >= key.shape[2]
    return bool(causal) and options.get("is_causal") is not False and not any(options.get(name) for name in UNUSUAL)
