"""What quantisation sees of a block: the Hessians of its linears' inputs, and its outputs as targets of its tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from oaem.calibration.forward_log import ForwardLog, logged
from oaem.models.capture import run_block
from oaem.quantization.hessian import HessianAccumulator

KEPT_BYTES = 2**30  # of results of the block's layers, so that the next group goes on from them


class _Enough(Exception):  # noqa: N818 (a signal, not an error)
    """The inputs of a sequential group have been seen; the rest of the block need not run."""


class BlockWalk:
    """One block over all calibration sequences, seen group after group while its linears are quantised in between.

    hidden: [sequences, window, hidden], the inputs of the block, which is changed in place by whoever quantises it.
    groups: its linears by name, as `Family.sequential_groups`. With `tuned`, all of the block may change between two
    groups: each observation starts from its inputs and goes to its end, for its outputs are the targets. Else an
    observation goes on from the one before, in up to KEPT_BYTES of memory; what does not fit is computed again.

    With `unquantised_targets` the outputs of the first observation, when nothing of the block is quantised yet, are the
    targets of every group, and later observations end at the inputs that they are for. With `targets`, like `hidden`,
    these are, and the first observation ends there, too.
    """

    def __init__(
        self,
        block: nn.Module,
        hidden: Tensor,
        arguments: dict[str, Any],
        groups: tuple[tuple[str, ...], ...],
        tuned: bool,
        unquantised_targets: bool = False,
        targets: Tensor | None = None,
    ):
        self.block, self.hidden, self.arguments, self.groups, self.tuned = block, hidden, arguments, groups, tuned
        self.unquantised_targets = unquantised_targets
        self.kept_targets = targets
        self.chunks = hidden.split(batch_size(hidden))
        self.logs = [ForwardLog(KEPT_BYTES // len(self.chunks)) for _ in self.chunks]

    @torch.no_grad()
    def observe(self, number: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Group `number`, all before it being quantised: the Hessian [in, in] of each linear, and the targets.

        Linears that read the very same tensor share one Hessian. Targets [sequences, window, hidden] only if tuned.
        """
        group, to_the_end = self.groups[number], self.tuned and self.kept_targets is None
        accumulators: dict[str, HessianAccumulator] = {}
        shared: dict[str, str] = {}
        targets = torch.empty_like(self.hidden) if to_the_end else self.kept_targets
        at = 0
        for chunk, log in zip(self.chunks, self.logs, strict=True):
            # Of linears that share their input the first will do: the others then need not be waited for.
            seen, output = self._inputs(chunk, log, accumulators or group, self.groups[number:], to_the_end)
            if not shared:
                shared = {name: next(first for first in seen if seen[first] is seen[name]) for name in group}
                firsts = dict.fromkeys(shared.values())
                accumulators = {name: HessianAccumulator(seen[name].shape[-1], chunk.device) for name in firsts}
            for name, accumulator in accumulators.items():
                accumulator.update(seen[name])
            if targets is not None and output is not None:
                targets[at : at + len(chunk)] = output
            at += len(chunk)
        hessians = {name: accumulator.finish() for name, accumulator in accumulators.items()}
        if self.unquantised_targets:
            self.kept_targets = targets
        return {name: hessians[shared[name]] for name in group}, targets

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """The block's outputs [sequences, window, hidden] once all groups are quantised."""
        outputs = torch.empty_like(self.hidden)
        for chunk, log, place in zip(self.chunks, self.logs, outputs.split(len(self.chunks[0])), strict=True):
            place.copy_(self._run(chunk, log))
        return outputs

    def _inputs(
        self,
        chunk: Tensor,
        log: ForwardLog,
        wanted: Iterable[str],
        pending: tuple[tuple[str, ...], ...],
        to_the_end: bool,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The inputs of the linears `wanted`, in the order of their calls, and the block's outputs if `to_the_end`.

        pending: the linears still to be quantised, group by group. What they are the first to compute is not final.
        """
        seen: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                log.stop()
                if name in wanted:
                    seen[name] = inputs[0]
                if not to_the_end and len(seen) == len(tuple(wanted)):
                    raise _Enough

            return keep

        output = None
        with ExitStack() as stack:
            for name in (name for group in pending for name in group):
                stack.callback(self.block.get_submodule(name).register_forward_pre_hook(hook(name)).remove)
            with suppress(_Enough):
                output = self._run(chunk, log)
        return seen, output

    def _run(self, chunk: Tensor, log: ForwardLog) -> Tensor:
        with nullcontext() if self.tuned else logged(self.block, log):
            return run_block(self.block, chunk, self.arguments, batch=len(chunk))


def batch_size(hidden: Tensor) -> int:
    """Sequences a forward pass: about 4096 tokens, which keeps a CPU's caches and a GPU's units busy."""
    return max(1, 4096 // hidden.shape[1])
