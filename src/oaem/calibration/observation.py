"""What quantisation sees of a block: the Hessians of its linears' inputs, and its outputs as targets of its tuning."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from oaem.models.capture import run_block
from oaem.quantization.hessian import HessianAccumulator


class _Enough(Exception):  # noqa: N818 (a signal, not an error)
    """The inputs of a sequential group have been seen; the rest of the block need not run."""


@torch.no_grad()
def observe(
    block: nn.Module, group: tuple[str, ...], hidden: Tensor, arguments: dict[str, Any], targets: bool
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Run the block in its current state: the Hessian of each linear of `group`, and the block's outputs if asked for.

    Linears that read the very same tensor share one Hessian. Without targets the forward stops at the group.
    """
    seen: dict[str, Tensor] = {}
    accumulators: dict[str, HessianAccumulator] = {}
    shared: dict[str, str] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0]
            if not targets and len(seen) == len(group):
                raise _Enough

        return keep

    outputs = []
    with ExitStack() as stack:
        for name in group:
            stack.callback(block.get_submodule(name).register_forward_pre_hook(hook(name)).remove)
        for chunk in hidden.split(batch_size(hidden)):
            seen.clear()
            with suppress(_Enough):
                outputs.append(run_block(block, chunk, arguments, batch=len(chunk)))
            if not shared:
                shared = {name: next(other for other in group if seen[other] is seen[name]) for name in group}
                widths = {name: seen[name].shape[-1] for name in set(shared.values())}
                accumulators = {name: HessianAccumulator(width, hidden.device) for name, width in widths.items()}
            for name, accumulator in accumulators.items():
                accumulator.update(seen[name])
    hessians = {name: accumulator.finish() for name, accumulator in accumulators.items()}
    return {name: hessians[shared[name]] for name in group}, torch.cat(outputs) if targets else None


def batch_size(hidden: Tensor) -> int:
    """Sequences a forward pass: about 4096 tokens, which keeps a CPU's caches and a GPU's units busy."""
    return max(1, 4096 // hidden.shape[1])
