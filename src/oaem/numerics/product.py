"""The matrix product that the formulas share."""

from __future__ import annotations

import torch
from torch import Tensor

from oaem.numerics.fast_paths import fast_path
from oaem.numerics.onednn import product_library


def _fits_onednn(left: Tensor, right: Tensor) -> bool:
    float32 = left.dtype == right.dtype == torch.float32
    return float32 and left.numel() > 0 and right.numel() > 0 and product_library() == "onednn"


@fast_path("cpu", "oaem.numerics.onednn:product_onednn", when=_fits_onednn)
def matrix_product(left: Tensor, right: Tensor) -> Tensor:
    """`left` [n, k] @ `right` [k, m] without gradients."""
    return left @ right
