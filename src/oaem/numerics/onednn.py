"""The float32 matrix product of the CPU through oneDNN.

PyTorch hands it to MKL, which leaves half the width of an AMD processor's vectors unused: 110 instead of 240 GFLOP/s on
one Zen 5 core. oneDNN, also part of PyTorch, uses all of it, in the same precision.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product_onednn(left: Tensor, right: Tensor) -> Tensor:
    """`left` [n, k] @ `right` [k, m], float32 and not empty, without gradients."""
    # For views with gaps oneDNN falls back to plain loops, thousands of times slower than a copy.
    return torch.ops.mkldnn._linear_pointwise(_dense(left), _dense(right).t(), None, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()
