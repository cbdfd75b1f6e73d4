"""H = X^T X / tokens of a layer's calibration inputs, streamed (section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from oaem.errors import UserError
from oaem.numerics.product import matrix_product

TOKENS_AT_ONCE = 4096
# On tensor cores, which cut what a float32 cannot hold off their sums instead of rounding it: the longer, the smaller.
TOKENS_ON_TENSOR_CORES = 1024
STRIP = 192  # columns
HALVES = (torch.bfloat16, torch.float16)


class HessianAccumulator:
    """Sums float32 products of at most 4096 tokens in float64: float32 alone loses digits as tokens add up."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu"):
        self.total = torch.zeros(in_features, in_features, dtype=torch.float64, device=device)
        self.tokens = 0

    @torch.no_grad()
    def update(self, inputs: Tensor) -> None:
        """Add inputs [..., in] of any floating-point dtype; UserError if they hold NaN or infinity."""
        at_once = TOKENS_ON_TENSOR_CORES if _on_tensor_cores(self.total.device, inputs.dtype) else TOKENS_AT_ONCE
        for part in inputs.detach().flatten(0, -2).split(at_once):
            product = _symmetric_product(part.to(self.total.device))
            # Every bad input shows on the diagonal, which is cheaper to look at than the inputs.
            if not bool(torch.isfinite(product.diagonal()).all()):
                raise UserError(
                    "calibration inputs of a linear layer are not finite (NaN, infinity or beyond 1e19). The model "
                    "overflows on this text: try another model dtype, or look for damaged weights."
                )
            self.total += product
            self.tokens += len(part)

    def finish(self) -> Tensor:
        """H [in, in] in float32; UserError if no input came."""
        if self.tokens == 0:
            raise UserError("no calibration inputs reached a linear layer; the calibration text must not be empty.")
        # A strip of rows at a time: another matrix in float64 would be gigabytes of a wide layer.
        hessian = torch.empty_like(self.total, dtype=torch.float32)
        for whole, strip in zip(hessian.split(TOKENS_AT_ONCE), self.total.split(TOKENS_AT_ONCE), strict=True):
            whole.copy_(strip / self.tokens)
        return hessian


def _on_tensor_cores(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype in HALVES


def _symmetric_product(values: Tensor) -> Tensor:
    """X^T X [in, in] in float32 for X [n, in]; on the CPU the lower half in strips of columns, the upper from it."""
    if _on_tensor_cores(values.device, values.dtype):
        # A float32 holds the product of two such numbers, so only sums lose anything.
        return torch.mm(values.T, values, out_dtype=torch.float32)
    if values.is_cuda:
        values = values.float()
        return values.T @ values
    rows = values.T.contiguous().float()
    product = torch.empty(len(rows), len(rows))
    for start in range(0, len(rows), STRIP):
        stop = start + STRIP
        product[start:, start:stop] = matrix_product(rows[start:], rows[start:stop].T)
        product[start:stop, stop:] = product[stop:, start:stop].T
    return product
