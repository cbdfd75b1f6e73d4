"""Codebook steps for CUDA devices: the fast twin of `codebook_steps.adam_steps`.

A step is five launches: the difference of the matrices, its product, two passes that gather the product, and Adam on
codebooks and row scales together. On a small layer the host still takes longer to launch them than the device to run
them. All steps of an epoch but the first are therefore recorded once for each shape of layer, on tensors that stay
where they are, and replayed as one launch for every epoch of every layer of that shape. The first step is launched by
the host, which has to see its loss.

A layer takes the same kernels in the same order whether its shape was recorded before or is now, so its bits do not
depend on what came before it.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from oaem.quantization.kernels.cuda.layer_loss import SplitLayerLoss
from oaem.quantization.kernels.cuda.recorded import Recording
from oaem.quantization.kernels.cuda.sorted_sums import CHUNKS, sum_over_chunks

# Multiplications of W H up to which steps are recorded: the product of a larger layer, such as 8192 x 3072, keeps an
# H100 busy for longer than the host needs for the launches, and its tensors need not be kept twice.
LARGEST_RECORDED = 2**35
# Recordings that a process keeps: more than a block has shapes of layers. At two codebooks over groups of eight each
# takes 16 bytes for a weight and 6 for a number of the Hessian: 16 MB for 1536 x 576, 210 MB for 3072 x 3072.
SHAPES_KEPT = 8
# Adam's state, by torch's names.
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
TILE = 64  # numbers of a program


@triton.jit
def _adam(
    values, first, second, largest, schedule, partial, slopes, chunks, in_codebooks, numbers, scale,
    beta1, beta2, rest1, rest2, epsilon, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """One AMSGrad step on all numbers: those in codebooks, whose gradients come in chunks, and row scales behind them.

    schedule: step length and root of the second moment's bias correction. rest1, rest2: 1 - beta1, 1 - beta2.
    """
    i = tl.program_id(0) * N + tl.arange(0, N)
    inside, in_books = i < numbers, i < in_codebooks
    table = sum_over_chunks(partial, i, in_books, chunks, in_codebooks, C)
    slope = tl.load(slopes + (i - in_codebooks), mask=inside & (i >= in_codebooks), other=0.0)
    gradient = scale * tl.where(in_books, table, slope)
    momentum = beta1 * tl.load(first + i, mask=inside, other=0.0) + rest1 * gradient
    energy = beta2 * tl.load(second + i, mask=inside, other=0.0) + rest2 * gradient * gradient
    most = tl.maximum(tl.load(largest + i, mask=inside, other=0.0), energy)
    length, root = tl.load(schedule), tl.load(schedule + 1)
    value = tl.load(values + i, mask=inside, other=0.0) - length * momentum / (tl.sqrt(most) / root + epsilon)
    tl.store(values + i, value, mask=inside)
    tl.store(first + i, momentum, mask=inside)
    tl.store(second + i, energy, mask=inside)
    tl.store(largest + i, most, mask=inside)


def adam_steps_triton(
    problem: SplitLayerLoss,
    codebooks: Tensor,
    row_scales: Tensor,
    optimizer: torch.optim.Optimizer,
    steps: int,
    accept: Callable[[float], bool],
) -> bool:
    """See `codebook_steps.adam_steps`; float32. The state stays where torch's optimiser keeps it."""
    epoch = _epoch(problem, codebooks, optimizer.param_groups[0], steps)
    epoch.load(codebooks, row_scales, optimizer)
    if not accept(epoch.loss()):
        return False
    epoch.take_steps()
    epoch.store(codebooks, row_scales, optimizer)
    return True


_recorded: dict[tuple[Any, ...], Epoch] = {}


def _epoch(problem: SplitLayerLoss, codebooks: Tensor, adam: dict[str, Any], steps: int) -> Epoch:
    """An epoch of `steps` on `problem`: one of those kept, where the layer is small enough."""
    out, columns = problem.weight.shape
    settings = (codebooks.shape, steps, tuple(adam["betas"]), adam["eps"])
    if out * columns**2 > LARGEST_RECORDED:
        return Epoch(problem, *settings)
    key = (problem.weight.shape, problem.codes.dtype, problem.weight.device, *settings)
    if key not in _recorded:
        if len(_recorded) == SHAPES_KEPT:
            del _recorded[next(iter(_recorded))]
        _recorded[key] = Epoch(problem.twin(), *settings)
        _recorded[key].record()
    _recorded[key].problem.take(problem)
    return _recorded[key]


class Epoch:
    """`steps` Adam steps on a layer, launched one by one unless `record` is called.

    Values and moments lie in one row each, those of the codebooks before those of the row scales. An epoch that is not
    recorded goes with its last reference, and so do the problem's matrices, gigabytes of a large layer: nothing in it
    refers back to it, or it would wait for the collector.
    """

    def __init__(
        self,
        problem: SplitLayerLoss,
        shape: torch.Size,
        steps: int,
        betas: tuple[float, float],
        epsilon: float,
    ):
        self.problem, self.steps, self.betas, self.epsilon = problem, steps, betas, epsilon
        device = problem.weight.device
        self.in_codebooks = shape.numel()
        self.state = torch.zeros(1 + len(MOMENTS), self.in_codebooks + len(problem.weight), device=device)
        self.codebooks = self.state[0, : self.in_codebooks].view(shape)
        self.row_scales = self.state[0, self.in_codebooks :]
        self.schedule = torch.zeros(steps, 4, device=device)  # Rows of 16 bytes, where kernels like to begin.
        self.sums = torch.empty(0), torch.empty(0)
        self.recording: Recording | None = None

    def record(self) -> None:
        """Let all steps but the first be recorded when they are taken next."""
        self.recording = Recording(self._after_the_first)

    def load(self, codebooks: Tensor, row_scales: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Begin where `optimizer` stands with these parameters."""
        for ours, theirs in self._pairs(codebooks, row_scales, optimizer):
            ours.copy_(theirs)
        taken = int(optimizer.state[codebooks]["step"])
        lr, (beta1, beta2) = optimizer.param_groups[0]["lr"], self.betas
        rows = [
            [lr / (1 - beta1**step), (1 - beta2**step) ** 0.5, 0, 0]
            for step in range(taken + 1, taken + 1 + self.steps)
        ]
        self.schedule.copy_(torch.tensor(rows))

    def store(self, codebooks: Tensor, row_scales: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Hand back what the steps made of them."""
        for ours, theirs in self._pairs(codebooks, row_scales, optimizer):
            theirs.copy_(ours)
        for parameter in (codebooks, row_scales):
            optimizer.state[parameter]["step"] += self.steps

    def loss(self) -> float:
        """The loss before the first step."""
        partial, slopes, losses = self.problem.sums(self.codebooks, self.row_scales)
        self.sums = partial, slopes
        return float(losses.sum(dtype=torch.float64)) / len(losses)

    def take_steps(self) -> None:
        """All steps, after `loss`."""
        self._update(0, *self.sums)
        if self.steps > 1:
            (self.recording or self._after_the_first)()

    def _after_the_first(self) -> None:
        for step in range(1, self.steps):
            partial, slopes, _ = self.problem.sums(self.codebooks, self.row_scales)
            self._update(step, partial, slopes)

    def _update(self, step: int, partial: Tensor, slopes: Tensor) -> None:
        numbers, (beta1, beta2) = self.state.shape[1], self.betas
        _adam[(triton.cdiv(numbers, TILE),)](
            *self.state, self.schedule[step], partial, slopes, len(partial), self.in_codebooks, numbers,
            2 / len(slopes), beta1, beta2, 1 - beta1, 1 - beta2, self.epsilon, N=TILE, C=CHUNKS, num_warps=2,
        )  # fmt: skip

    def _pairs(
        self, codebooks: Tensor, row_scales: Tensor, optimizer: torch.optim.Optimizer
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Our part of `state` beside the tensor that the optimiser works with, each in the latter's shape."""
        parts = self.state[:, : self.in_codebooks], self.state[:, self.in_codebooks :]
        for ours, parameter in zip(parts, (codebooks, row_scales), strict=True):
            kept = optimizer.state[parameter]
            if not kept:  # torch fills it at the first step
                kept["step"] = torch.tensor(0.0)
                kept |= {name: torch.zeros_like(parameter) for name in MOMENTS}
            for row, theirs in zip(ours, (parameter, *(kept[name] for name in MOMENTS)), strict=True):
                yield row.view(theirs.shape), theirs
