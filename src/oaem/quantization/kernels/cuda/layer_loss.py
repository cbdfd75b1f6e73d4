"""The layer's loss, its gradients and the dense matrix, for CUDA devices: the fast twins of `layer_loss.LayerLoss`
and `weight.dequantize`.

A step is one product and three passes over a matrix. The first turns codes into the difference W^ - W, already split
for the product; the second gathers the product into the scales' gradient and the loss; the third, by `SortedCodes`,
into the codebooks' gradient.

The product runs on bfloat16 tensor cores with both operands split into a high and a low half, 16 bits of mantissa
together: D H = D_high H_high + D_low H_high + D_high H_low, one product over stacked operands, summed in float32.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

from copy import copy

import torch
import triton
import triton.language as tl
from torch import Tensor

from oaem.quantization.kernels.cuda.clusters import sums_by_code_triton
from oaem.quantization.kernels.cuda.sorted_sums import SortedCodes
from oaem.quantization.layer_loss import LayerLoss

TILE = 512  # numbers of a row at a time
STRIP = 4096  # rows of the Hessian that are split at a time: it may be gigabytes


@triton.jit
def _entries(codes, codebooks, column, inside, M: tl.constexpr, K: tl.constexpr, g: tl.constexpr):
    """What the codes [in/g, M] of a row stand for, in the columns given."""
    total = tl.zeros_like(column).to(tl.float32)
    for m in tl.static_range(M):
        code = tl.load(codes + column // g * M + m, mask=inside, other=0).to(tl.int32)
        total += tl.load(codebooks + (m * K + code) * g + column % g, mask=inside, other=0.0)
    return total


@triton.jit
def _spread(
    codes, codebooks, scales, weight, result, columns,
    M: tl.constexpr, K: tl.constexpr, g: tl.constexpr, N: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One row of W^ to result [out, in]; with SPLIT one row of W^ - W to result [out, 3 in] as high, low, high."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * N + tl.arange(0, N)
    inside = column < columns
    value = _entries(codes + row * (columns // g) * M, codebooks, column, inside, M, K, g) * tl.load(scales + row)
    if SPLIT:
        value -= tl.load(weight + row * columns + column, mask=inside, other=0.0)
        high = value.to(tl.bfloat16)
        place = result + row * 3 * columns + column
        tl.store(place, high, mask=inside)
        tl.store(place + columns, (value - high.to(tl.float32)).to(tl.bfloat16), mask=inside)
        tl.store(place + 2 * columns, high, mask=inside)
    else:
        tl.store(result + row * columns + column, value, mask=inside)


@triton.jit
def _gather(
    product, codes, codebooks, scales, weight, slopes, losses, columns,
    M: tl.constexpr, K: tl.constexpr, g: tl.constexpr, N: tl.constexpr, LOSS: tl.constexpr,
):  # fmt: skip
    """Inner products of one row of `product` with the unscaled row and, with LOSS, with W^ - W."""
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scales + row)
    slope, loss = tl.zeros((N,), tl.float32), tl.zeros((N,), tl.float32)
    for start in range(0, columns, N):
        column = start + tl.arange(0, N)
        inside = column < columns
        value = _entries(codes + row * (columns // g) * M, codebooks, column, inside, M, K, g)
        gradient = tl.load(product + row * columns + column, mask=inside, other=0.0)
        slope += gradient * value
        if LOSS:
            loss += gradient * (value * scale - tl.load(weight + row * columns + column, mask=inside, other=0.0))
    tl.store(slopes + row, tl.sum(slope))
    if LOSS:
        tl.store(losses + row, tl.sum(loss))


class SplitLayerLoss(LayerLoss):
    """`layer_loss.LayerLoss` with the Hessian split and the codes sorted once for all evaluations."""

    def __init__(self, weight: Tensor, hessian: Tensor, codes: Tensor, codebook_size: int):
        super().__init__(weight, hessian, codes.contiguous(), codebook_size)
        self.stacked_hessian = split_hessian(hessian)
        self.order = SortedCodes(self.codes, codebook_size)

    def gather(self, gradient: Tensor) -> Tensor:
        """See `layer_loss.LayerLoss.gather`."""
        return self.order.sums(gradient, torch.ones(len(gradient), device=gradient.device))

    def value(self, codebooks: Tensor, row_scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `layer_loss.LayerLoss.value`; float32."""
        out = len(self.weight)
        partial, slopes, losses = self.sums(codebooks.contiguous(), row_scales)
        tables = partial.sum(0, dtype=torch.float64).float()
        return losses.sum(dtype=torch.float64) / out, tables * (2 / out), slopes * (2 / out)

    def sums(self, codebooks: Tensor, row_scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What loss and gradients are sums of, in four launches and times out / 2, the loss times out.

        codebooks [M, K, g] and row_scales [out] are contiguous. Returns parts [chunks, M, K, g] of the gradient by
        codebooks, the gradient by row scales [out], and each row's share of the loss [out].
        """
        out, columns = self.weight.shape
        difference = torch.empty(out, 3 * columns, dtype=torch.bfloat16, device=self.weight.device)
        shape = _shape(codebooks)
        _spread[(out, triton.cdiv(columns, TILE))](
            self.codes, codebooks, row_scales, self.weight, difference, columns, **shape, SPLIT=True
        )
        product = _product(difference, self.stacked_hessian)
        slopes, losses = torch.empty_like(row_scales), torch.empty_like(row_scales)
        _gather[(out,)](
            product, self.codes, codebooks, row_scales, self.weight, slopes, losses, columns, **shape, LOSS=True
        )
        return self.order.partial_sums(product, row_scales), slopes, losses

    def twin(self) -> SplitLayerLoss:
        """The same in tensors of its own, with all that `sums` reads and no more."""
        twin = copy(self)
        twin.weight, twin.codes, twin.stacked_hessian = (
            part.clone() for part in (self.weight, self.codes, self.stacked_hessian)
        )
        twin.hessian, twin.order = torch.empty(0), self.order.twin()
        return twin

    def take(self, other: SplitLayerLoss) -> None:
        """Become `other`, a layer of the same shape, in the tensors that are there, as far as `sums` reads them."""
        self.weight.copy_(other.weight)
        self.codes.copy_(other.codes)
        self.stacked_hessian.copy_(other.stacked_hessian)
        self.order.take(other.order)


def split_hessian(hessian: Tensor) -> Tensor:
    """The right operand of the product, bfloat16 [3 in, in], for `hessian` [in, in]: high, high, low."""
    stacked = torch.empty(3, *hessian.shape, dtype=torch.bfloat16, device=hessian.device)
    stacked[:2] = hessian
    for start in range(0, len(hessian), STRIP):
        strip = slice(start, start + STRIP)
        stacked[2, strip] = hessian[strip] - stacked[0, strip].float()
    return stacked.flatten(0, 1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()  # torch has no such product for the CPU, where the tests interpret the kernels.


def dequantize_triton(
    codes: Tensor, codebooks: Tensor, row_scales: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The dense matrix [out, in] in `dtype`, from codebooks and row scales in float32; see `weight.dequantize`.

    codebooks: [M, K, g], or [layers, M, K, g] where codes count through those of several layers.
    """
    out, columns = len(codes), codes.shape[1] * codebooks.shape[-1]
    matrix = torch.empty(out, columns, dtype=dtype, device=codes.device)
    _spread[(out, triton.cdiv(columns, TILE))](
        codes.contiguous(), codebooks.contiguous(), row_scales.contiguous(), matrix, matrix, columns,
        **_shape(codebooks), SPLIT=False,
    )  # fmt: skip
    return matrix


def dequantize_gradients_triton(
    gradient: Tensor, codes: Tensor, codebooks: Tensor, row_scales: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by codebooks [M, K, g] and row scales [out] from that of the dense matrix [out, in], all float32."""
    slopes = scale_gradients_triton(gradient, codes, codebooks, row_scales)
    return sums_by_code_triton(gradient, row_scales, codes, codebooks.shape[1]), slopes


def scale_gradients_triton(gradient: Tensor, codes: Tensor, codebooks: Tensor, row_scales: Tensor) -> Tensor:
    """The gradient by row scales [out] alone; codebooks as above, or of several layers."""
    gradient, codes, codebooks = gradient.contiguous(), codes.contiguous(), codebooks.contiguous()
    slopes = torch.empty_like(row_scales)
    _gather[(len(gradient),)](
        gradient, codes, codebooks, row_scales, gradient, slopes, slopes, gradient.shape[1],
        **_shape(codebooks), LOSS=False,
    )  # fmt: skip
    return slopes


def _shape(codebooks: Tensor) -> dict[str, int]:
    """Compile-time constants."""
    num_codebooks, size, group_size = codebooks.shape[-3:]
    return {"M": num_codebooks, "K": size, "g": group_size, "N": TILE}
