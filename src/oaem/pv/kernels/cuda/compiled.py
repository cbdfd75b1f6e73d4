"""The blocks of a model through torch's compiler: norms, rotary embedding, activation and casts in few kernels.

Only on CUDA devices. A block is compiled together with its recomputation in the backward pass, once for all blocks that
are alike. Nothing that decides bits is chosen by timing: a tuning that goes on in another process meets the same code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from oaem.pv.blocks import blocks_of
from oaem.pv.kernels.cuda.attention import use_fused_attention

log = logging.getLogger(__name__)
# Attention costs more to repeat than its result takes to keep.
_KEPT = partial(create_selective_checkpoint_contexts, [torch.ops.oaem.pv_attention.default])


def prepare_blocks(model: nn.Module, checkpointing: bool) -> None:
    """Let the blocks of a model on a CUDA device attend reproducibly and run compiled.

    checkpointing: recompute what is inside of a block in the backward pass. A forward pass that nobody will
    differentiate runs compiled too if no parameter is trained (a teacher), else as it is (a measure of perplexity,
    whose windows have lengths of their own).
    """
    use_fused_attention(model)
    trained = any(parameter.requires_grad for parameter in model.parameters())
    for block in blocks_of(model):
        block.forward = partial(_forward, block, checkpointing, trained)


def _forward(block: nn.Module, checkpointing: bool, trained: bool, *arguments: Any, **named: Any) -> Any:
    if trained != torch.is_grad_enabled():
        return type(block).forward(block, *arguments, **named)
    return _compiled()(block, checkpointing, arguments, named)


def _run(block: nn.Module, checkpointing: bool, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    forward = partial(type(block).forward, block, **named)
    return (
        checkpoint(forward, *arguments, use_reentrant=False, context_fn=_KEPT) if checkpointing else forward(*arguments)
    )


@cache
def _compiled() -> Callable[..., Any]:
    options: dict[str, Any] = {}
    try:
        import torch._inductor.config as settings

        if hasattr(settings, "deterministic"):
            options["deterministic"] = True
        probe = torch.compile(lambda numbers: (numbers * 2).sum(), options=options)
        probe(torch.ones(8, device="cuda"))
    except Exception as error:  # whatever a missing or broken tool chain raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        log.warning("torch's compiler does not work here (%s): PV-tuning runs uncompiled, and slower", reason)
        return _run
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_tells_news)
    return torch.compile(_run, dynamic=False, options=options)


def _tells_news(record: logging.LogRecord) -> bool:
    """Not for torch's reminder that what is recomputed must do nothing in place: the families' blocks do not."""
    return "context_fn is passed to torch.utils.checkpoint" not in record.getMessage()
