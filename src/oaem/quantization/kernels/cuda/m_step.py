"""OA-EM's M-step for CUDA devices: the fast twins of `m_step.statistics` and `m_step.adam_on_quadratic`.

An entry's steps depend on no other entry, so one program takes all steps of one entry without leaving the chip; as
separate operations they would be more than a thousand launches of a few microseconds.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from oaem.quantization.kernels.cuda.clusters import sums_by_code_triton


@triton.jit
def _adam(
    curvature, pull, centroids, schedule, steps, constants, g: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """All steps for one entry. schedule [steps, 2]: step length and the second moment's bias correction."""
    scale, beta1, beta2, epsilon = (
        tl.load(constants),
        tl.load(constants + 1),
        tl.load(constants + 2),
        tl.load(constants + 3),
    )
    k, i, j = tl.program_id(0), tl.arange(0, G), tl.arange(0, G)
    square = (i < g)[:, None] & (j < g)[None, :]
    matrix = tl.load(curvature + (k * g + i[:, None]) * g + j[None, :], mask=square, other=0.0)
    target = tl.load(pull + k * g + i, mask=i < g, other=0.0)
    value = tl.load(centroids + k * g + i, mask=i < g, other=0.0)
    first, second = tl.zeros((G,), tl.float64), tl.zeros((G,), tl.float64)
    for step in range(steps):
        # The matrix is symmetric, so summing over its rows keeps the result where the next step wants it.
        gradient = scale * (tl.sum(matrix * value[:, None], axis=0) - target)
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient * gradient
        length, correction = tl.load(schedule + 2 * step), tl.load(schedule + 2 * step + 1)
        value -= length * first / (tl.sqrt(second / correction) + epsilon)
    tl.store(centroids + k * g + i, value, mask=i < g)


def adam_m_step_triton(
    curvature: Tensor,
    pull: Tensor,
    centroids: Tensor,
    scale: float,
    rates: list[float],
    betas: tuple[float, float],
    epsilon: float,
) -> Tensor:
    """Centroids [K, g] after one Adam step for each of `rates`, from the gradient scale * (A_k c_k - b_k).

    curvature: A_k, float64 [K, g, g], symmetric. pull: b_k, float64 [K, g].
    """
    beta1, beta2 = betas
    schedule = torch.tensor(
        [[rate / (1 - beta1 ** (step + 1)), 1 - beta2 ** (step + 1)] for step, rate in enumerate(rates)],
        dtype=torch.float64, device=centroids.device,
    )  # fmt: skip
    values = centroids.to(torch.float64, copy=True).contiguous()
    group_size = centroids.shape[1]
    # Scalars travel as float64 tensors: Triton would pass Python floats as float32.
    constants = torch.tensor([scale, beta1, beta2, epsilon], dtype=torch.float64, device=centroids.device)
    _adam[(len(values),)](
        curvature.contiguous(), pull.contiguous(), values, schedule, len(rates), constants,
        g=group_size, G=triton.next_power_of_2(group_size), num_warps=1,
    )  # fmt: skip
    return values.to(centroids.dtype)


def statistics_triton(
    vectors: Tensor, blocks: Tensor, codes: Tensor, size: int, row_weights: None = None
) -> tuple[Tensor, Tensor]:
    """See `m_step.statistics`; vectors and blocks in float32, `size` from 16 to 256, every row counting alike."""
    groups, _, group_size = vectors.shape
    ones = torch.ones(groups, device=vectors.device)
    pull = sums_by_code_triton(torch.bmm(vectors, blocks).flatten(1), ones, codes[..., None], size)[0].double()
    labels = codes + size * torch.arange(groups, dtype=codes.dtype, device=codes.device)[:, None]
    counts = torch.bincount(labels.flatten(), minlength=groups * size).view(groups, size).double()
    return (counts.T @ blocks.double().flatten(1)).unflatten(1, (group_size, group_size)), pull
