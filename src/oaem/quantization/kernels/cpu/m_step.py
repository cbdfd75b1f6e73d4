"""OA-EM's M-step for the CPU: all steps of one entry in compiled code, the twin of `cuda/m_step.py`.

The numbers are few, K g^2 of them: as tensor operations a hundred steps would be a thousand calls waiting on Python.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor


def adam_m_step_numba(
    curvature: Tensor,
    pull: Tensor,
    centroids: Tensor,
    scale: float,
    rates: list[float],
    betas: tuple[float, float],
    epsilon: float,
) -> Tensor:
    """Centroids [K, g] after one Adam step for each of `rates`, from the gradient scale * (A_k c_k - b_k).

    curvature: A_k, float64 [K, g, g]. pull: b_k, float64 [K, g].
    """
    values = centroids.to(torch.float64, copy=True).contiguous()
    _adam(
        curvature.contiguous().numpy(),
        pull.contiguous().numpy(),
        values.numpy(),
        scale,
        np.array(rates),
        *betas,
        epsilon,
    )
    return values.to(centroids.dtype)


@numba.njit(cache=True, nogil=True)
def _adam(curvature, pull, values, scale, rates, beta1, beta2, epsilon):  # type: ignore[no-untyped-def]
    size, group_size = values.shape
    gradient, first, second = np.empty(group_size), np.empty(group_size), np.empty(group_size)
    for k in range(size):
        first[:], second[:] = 0, 0
        for step in range(len(rates)):
            for i in range(group_size):
                total = -pull[k, i]
                for j in range(group_size):
                    total += curvature[k, i, j] * values[k, j]
                gradient[i] = scale * total
            bias1, bias2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
            for i in range(group_size):
                first[i] = beta1 * first[i] + (1 - beta1) * gradient[i]
                second[i] = beta2 * second[i] + (1 - beta2) * gradient[i] ** 2
                values[k, i] -= rates[step] / bias1 * first[i] / (np.sqrt(second[i] / bias2) + epsilon)
