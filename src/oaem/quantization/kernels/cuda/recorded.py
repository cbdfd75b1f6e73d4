"""Steps that a CUDA device repeats without the host: recorded once as a graph of kernels, launched as one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from oaem.quantization.block_tuning import Step

log = logging.getLogger(__name__)

Work = Callable[[], None]
WARM_UP = 3  # steps before the recording, for what happens once: optimiser states, compiled kernels


def recorded(block: nn.Module, step: Step) -> Recorded:
    """See `block_tuning.launcher_of`."""
    return Recorded(step)


class Recorded:
    """`step` for arguments of one shape on one CUDA device; it must read and write the same tensors every time.

    A step of block tuning is some three hundred launches, which take the host longer than the device needs for the
    work. A step that asks the device for a number on its way cannot be recorded: it goes on as it is. The last step
    before the recording finds that out, for a recording that fails would leave torch's random numbers unusable.
    """

    def __init__(self, step: Step):
        self.step, self.calls, self.waits = step, 0, False
        self.stream = torch.cuda.Stream()  # A recording needs a stream of its own, and the steps before it the same.
        self.graph: torch.cuda.CUDAGraph | None = None
        self.arguments: tuple[Tensor, Tensor] = torch.empty(0), torch.empty(0)
        self.loss = torch.empty(0)

    def __call__(self, inputs: Tensor, target: Tensor) -> Tensor:
        """What `step` returns; the tensor is overwritten by the next call."""
        self.calls += 1
        if self.calls == WARM_UP:
            return self._watched(inputs, target)
        if self.calls == WARM_UP + 1 and not self.waits:
            self._record(inputs, target)
        if self.graph is None:
            return self._as_it_is(inputs, target)
        for kept, given in zip(self.arguments, (inputs, target), strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.loss

    def _as_it_is(self, inputs: Tensor, target: Tensor) -> Tensor:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            # Adam wonders why it is prepared for a recording but not recorded.
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            loss = self.step(inputs, target)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _watched(self, inputs: Tensor, target: Tensor) -> Tensor:
        """A step that notes whether it waits for the device; one that does breaks off before it changes anything."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            # That it is a prototype is known: a wait that it misses breaks the recording.
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        try:
            return self._as_it_is(inputs, target)
        except RuntimeError as error:
            log.info("a step of block tuning cannot be recorded (%s): every one is launched by the host", error)
            self.waits = True
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return self._as_it_is(inputs, target)

    def _record(self, inputs: Tensor, target: Tensor) -> None:
        # In the step's own dtype: they are copied there anyhow, and the step need not convert them once more.
        self.arguments = inputs.to(torch.float32, copy=True), target.clone()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.loss = self.step(*self.arguments)


class Recording:
    """`work`, recorded when it is first called and launched as one from then on.

    It must read and write the same tensors every time, must not wait for the device, and all its kernels must have run
    before, for a recording cannot load them.
    """

    def __init__(self, work: Work):
        self.work = work
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do the work."""
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.work()
            self.graph = graph
        self.graph.replay()
