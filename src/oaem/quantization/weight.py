"""The additive weight: codes, codebooks and row scales in place of a matrix (section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from oaem.numerics.fast_paths import fast_path
from oaem.numerics.product import matrix_product
from oaem.quantization.clusters import cluster_sums, fits_kernels

# Keeps the scale of an all-zero row from dividing by zero.
SCALE_EPSILON = 1e-9


@dataclass(frozen=True)
class AdditiveWeight:
    """A quantised matrix [out, in]: group j of row o is row_scales[o] times the sum of codebooks[m, codes[o, j, m]].

    codes: integer [out, in/g, M], each below K. codebooks: floating point [M, K, g]. row_scales: floating point [out].
    """

    codes: Tensor
    codebooks: Tensor
    row_scales: Tensor

    def dequantize(self) -> Tensor:
        """The dense matrix [out, in] in the dtype of the codebooks."""
        return dequantize(self.codes, self.codebooks, self.row_scales)


def dequantize(codes: Tensor, codebooks: Tensor, row_scales: Tensor) -> Tensor:
    """The dense matrix [out, in]; differentiable once in `codebooks` and `row_scales`, with reproducible sums."""
    matrix: Tensor = _Dequantize.apply(codes, codebooks, row_scales)
    return matrix


def sum_of_entries(codes: Tensor, codebooks: Tensor) -> Tensor:
    """What the codes stand for before the row scales: codes [out, in/g, M], codebooks [M, K, g] -> [out, in]."""
    # int32, because torch takes a uint8 index for a mask and cannot index with uint16 at all.
    indices = codes.to(torch.int32)
    groups = functional.embedding(indices[..., 0], codebooks[0])
    for m in range(1, len(codebooks)):
        groups += functional.embedding(indices[..., m], codebooks[m])
    return groups.flatten(1)


@fast_path(
    "cuda",
    "oaem.quantization.kernels.cuda.layer_loss:dequantize_triton",
    when=lambda codes, codebooks, row_scales: codebooks.dtype == torch.float32,
)
def dense_matrix(codes: Tensor, codebooks: Tensor, row_scales: Tensor) -> Tensor:
    """What `dequantize` gives, without a derivative."""
    return sum_of_entries(codes, codebooks) * row_scales[:, None]


@fast_path(
    "cuda",
    "oaem.quantization.kernels.cuda.layer_loss:dequantize_gradients_triton",
    when=lambda gradient, codes, codebooks, row_scales: fits_kernels(codebooks, codebooks.shape[1]),
)
@fast_path("cpu", "oaem.quantization.kernels.cpu.weight_gradients:weight_gradients_numba")
def weight_gradients(gradient: Tensor, codes: Tensor, codebooks: Tensor, row_scales: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of codebooks [M, K, g] and row_scales [out], given that of the dequantised weight [out, in].

    The weight is linear in each of the two, so one call on the gradient summed over a whole batch is exact. What
    autograd would give for plain indexing, without a graph and in the same order every time.
    """
    scaled = (gradient * row_scales[:, None]).reshape(-1, codebooks.shape[2])
    tables = [cluster_sums(codes[..., m].flatten(), codebooks.shape[1])(scaled) for m in range(len(codebooks))]
    slopes = (gradient * sum_of_entries(codes, codebooks)).sum(1)
    return torch.stack(tables).to(codebooks.dtype), slopes.to(row_scales.dtype)


class _Dequantize(torch.autograd.Function):
    """torch's own backward of a lookup is slow on the CPU and takes more memory: it keeps every intermediate."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, codebooks: Tensor, row_scales: Tensor) -> Tensor:
        ctx.save_for_backward(codes, codebooks, row_scales)
        return dense_matrix(codes, codebooks, row_scales)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        return None, *weight_gradients(gradient, *ctx.saved_tensors)


def row_scales_of(weight: Tensor) -> Tensor:
    """The scale of each row of `weight` [out, in] -> [out]: its Euclidean norm, never zero."""
    return torch.linalg.vector_norm(weight, dim=1) + SCALE_EPSILON


def normalised_groups(weight: Tensor, row_scales: Tensor, group_size: int) -> Tensor:
    """The vectors that codebooks describe: `weight` [out, in] by its row scales, cut into groups -> [out, in/g, g]."""
    return (weight / row_scales[:, None]).unflatten(1, (-1, group_size))


def output_error(difference: Tensor, hessian: Tensor) -> float:
    """tr(D H D^T) for D [out, in] and H [in, in], the layer's squared output error; the trace is summed in float64."""
    return float(torch.sum(matrix_product(difference, hessian) * difference, dtype=torch.float64))


def relative_error(weight: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    """tr((W^-W) H (W^-W)^T) / tr(W H W^T), the share of the layer's output energy that quantisation loses.

    A layer without any output energy (zero weight or zero inputs) has lost nothing as long as its error is zero too.
    """
    error, energy = output_error(quantized - weight, hessian), output_error(weight, hessian)
    if energy > 0:
        return max(error, 0.0) / energy
    return 0.0 if error <= 0 else float("inf")
