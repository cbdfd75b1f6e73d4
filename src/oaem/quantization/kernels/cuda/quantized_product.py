"""Products by quantised linears in bfloat16, with the gradients of codebooks and row scales; for block tuning.

Linears that share an input are one product by one matrix. Stacked, they are an additive weight themselves, whose codes
count through the codebooks of all of them, so every pass over codes takes one launch for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from oaem.quantization.kernels.cuda.layer_loss import dequantize_triton, scale_gradients_triton
from oaem.quantization.kernels.cuda.sorted_sums import SortedCodes
from oaem.quantization.linear import QuantizedLinear


class SharedInput:
    """Quantised linears of one geometry that are called on the same input: the first call multiplies by all.

    Right for any calls: a linear that is given another input than the ones before it multiplies anew. Their codes must
    not change.
    """

    def __init__(self, linears: list[QuantizedLinear]):
        self.linears = linears
        num_codebooks, size, _ = linears[0].codebooks.shape
        self.sizes = [linear.out_features for linear in linears]
        self.codes = linears[0].codes
        if len(linears) > 1:
            books = num_codebooks * size
            dtype = torch.int16 if len(linears) * books < 2**15 else torch.int32
            parts = [linear.codes.to(dtype) + index * books for index, linear in enumerate(linears)]
            self.codes = torch.cat(parts)
        self.order = SortedCodes(self.codes, size, len(linears))
        self.codebooks = torch.stack([linear.codebooks.detach() for linear in linears])
        self.row_scales = torch.cat([linear.row_scales.detach() for linear in linears])
        self.inputs: Tensor | None = None
        self.waiting: dict[int, Tensor] = {}  # results by the linear that has not yet asked for its own

    @contextmanager
    def stacked(self) -> Iterator[None]:
        """Let the linears' parameters be parts of `codebooks` and `row_scales`, and at the end tensors of their own.

        So an optimiser that changes them in place changes what is multiplied, and nothing is stacked anew every step.
        """
        for linear, codebooks, row_scales in zip(
            self.linears, self.codebooks, self.row_scales.split(self.sizes), strict=True
        ):
            linear.codebooks.data, linear.row_scales.data = codebooks, row_scales
        try:
            yield
        finally:
            for linear in self.linears:
                linear.codebooks.data = linear.codebooks.data.clone()
                linear.row_scales.data = linear.row_scales.data.clone()

    def forward(self, index: int, inputs: Tensor) -> Tensor:
        """inputs [..., in] -> [..., out] of linear `index`, in bfloat16 where it has no bias; inside of `stacked`."""
        if self.inputs is not inputs or index not in self.waiting:
            self.inputs = inputs
            parameters = [part for linear in self.linears for part in (linear.codebooks, linear.row_scales)]
            products = _QuantizedProduct.apply(inputs.bfloat16(), self, *parameters)
            self.waiting = dict(enumerate(products))
        product = self.waiting.pop(index)
        if not self.waiting:
            self.inputs = None
        bias = self.linears[index].bias
        return product if bias is None else product + bias


class _QuantizedProduct(torch.autograd.Function):
    """inputs bfloat16 [..., in] by the linears of `shared` -> bfloat16 [..., out] of each.

    parameters: codebooks and row scales of each linear, which get the gradients.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, shared: SharedInput, *parameters: Tensor) -> tuple[Tensor, ...]:
        half = dequantize_triton(shared.codes, shared.codebooks, shared.row_scales, torch.bfloat16)
        ctx.save_for_backward(inputs, half)
        ctx.shared = shared
        return (inputs @ half.T).split(shared.sizes, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, half = ctx.saved_tensors
        shared = ctx.shared
        gradient = side_by_side(gradients)
        dense = weight_gradient(gradient, inputs)
        slopes = scale_gradients_triton(dense, shared.codes, shared.codebooks, shared.row_scales)
        tables = shared.order.sums(dense, shared.row_scales).view_as(shared.codebooks)
        parts = zip(tables, slopes.split(shared.sizes), strict=True)
        return gradient @ half, None, *(part for both in parts for part in both)


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """`parts` [..., out of each] as one [..., out]: a view where they lie in memory just so, else a copy."""
    rows, columns = [part.flatten(0, -2) for part in parts], sum(part.shape[-1] for part in parts)
    first, place = rows[0], rows[0].storage_offset()
    for part in rows:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or part.storage_offset() != place or part.stride() != (columns, 1):
            return torch.cat(tuple(parts), -1)
        place += part.shape[1]
    return first.as_strided((len(first), columns), (columns, 1)).view(*parts[0].shape[:-1], columns)


def weight_gradient(gradient: Tensor, inputs: Tensor) -> Tensor:
    """gradient [..., out] and inputs [..., in] in bfloat16 -> their product over all tokens, float32 [out, in]."""
    left, right = gradient.flatten(0, -2).T, inputs.flatten(0, -2)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()  # torch has no such product for the CPU, where tests go through this code.
