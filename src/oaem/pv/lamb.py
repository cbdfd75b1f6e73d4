"""LAMB: Adam's update, scaled layer by layer to the norm of what it updates."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from oaem.numerics.fast_paths import fast_path


@dataclass(frozen=True)
class Lamb:
    """Rate and decays of one group of parameters; debiased, without weight decay."""

    lr: float
    beta1: float
    beta2: float
    eps: float

    def step_size(self, step: int) -> float:
        """The rate at `step` (from 1): the debias factor multiplies the step, so the trust ratio never sees it."""
        return self.lr * sqrt(1 - self.beta2**step) / (1 - self.beta1**step)

    @property
    def stored(self) -> int:
        """How many moments are kept of each number."""
        return 2 if self.beta1 else 1

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """Moments of `parameter` before the first step; with beta1 = 0 the first one is the gradient, never stored."""
        moments = {"second": torch.zeros_like(parameter)}
        return moments | {"first": torch.zeros_like(parameter)} if self.beta1 else moments


@fast_path(
    "cuda",
    "oaem.pv.kernels.cuda.lamb:lamb_step_triton",
    when=lambda parameter, *_: parameter.dtype == torch.float32,
)
@torch.no_grad()
def lamb_step(parameter: Tensor, gradient: Tensor, moments: dict[str, Tensor], step: int, lamb: Lamb) -> None:
    """Update `parameter` and its `moments` in place with the gradient of `step` (from 1).

    All tensors have one shape and dtype. Makes no host-device synchronisation.
    """
    average = gradient
    if lamb.beta1:
        average = moments["first"].mul_(lamb.beta1).add_(gradient, alpha=1 - lamb.beta1)
    second = moments["second"].mul_(lamb.beta2).addcmul_(gradient, gradient, value=1 - lamb.beta2)
    update = second.sqrt().add_(lamb.eps)
    torch.div(average, update, out=update)
    size, length = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(update)
    defined = (size > 0) & (length > 0)
    ratio = torch.where(defined, size / torch.where(defined, length, 1.0), 1.0)
    parameter.sub_(update.mul_(ratio * lamb.step_size(step)))


def lamb_step_reference(
    parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int, lamb: Lamb
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, without regard to speed: the new parameter, first and second moment."""
    first = lamb.beta1 * first + (1 - lamb.beta1) * gradient
    second = lamb.beta2 * second + (1 - lamb.beta2) * gradient**2
    update = first / (second**0.5 + lamb.eps)
    trust_ratio = 1.0
    if parameter.norm() != 0 and update.norm() != 0:
        trust_ratio = float(parameter.norm() / update.norm())
    debias = (1 - lamb.beta2**step) ** 0.5 / (1 - lamb.beta1**step)
    return parameter - lamb.lr * debias * trust_ratio * update, first, second
