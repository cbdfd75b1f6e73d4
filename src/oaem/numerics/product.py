"""The matrix product that the formulas share."""

from __future__ import annotations

import torch
from torch import Tensor

from oaem.numerics.fast_paths import fast_path

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _fits_onednn(left: Tensor, right: Tensor) -> bool:
    return bool(_HAS_ONEDNN and left.dtype == right.dtype == torch.float32 and left.numel() and right.numel())


@fast_path("cpu", "oaem.numerics.onednn:product_onednn", when=_fits_onednn)
def matrix_product(left: Tensor, right: Tensor) -> Tensor:
    """`left` [n, k] @ `right` [k, m] without gradients."""
    return left @ right
