"""The discrete half of a step: re-encoding an additive weight towards its straight-through buffer."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional

from oaem.numerics.fast_paths import fast_path
from oaem.quantization.clusters import fits_kernels
from oaem.quantization.weight import dequantize


@torch.no_grad()
def reencode(
    codes: Tensor,
    codebooks: Tensor,
    row_scales: Tensor,
    buffer: Tensor,
    max_code_change: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Re-encode the weight groups that lie farthest from `buffer` [out, in]; `codes` [out, in/g, M] change in place.

    The share `max_code_change` of the layer's groups, rounded up, takes part. Each walks the codebooks once in an order
    drawn from `generator`, and every code becomes the nearest one given the others. Distances are Euclidean, for the
    ranking in weight space, for the choice in row-normalised space. Returns the dequantised weight [out, in] that
    results and the number of codes that changed, a tensor: nobody waits for the device here.
    """
    order = torch.randperm(len(codebooks), generator=generator).tolist()
    count = groups_to_change(codes[..., 0].numel(), max_code_change)
    return reencode_farthest(codes, codebooks, row_scales, buffer, count, order)


@fast_path(
    "cuda",
    "oaem.pv.kernels.cuda.reencode:reencode_farthest_triton",
    when=lambda codes, codebooks, *_: fits_kernels(codebooks, codebooks.shape[1]),
)
@torch.no_grad()
def reencode_farthest(
    codes: Tensor, codebooks: Tensor, row_scales: Tensor, buffer: Tensor, count: int, order: list[int]
) -> tuple[Tensor, Tensor]:
    """`reencode` for the `count` groups that lie farthest, in the `order` of codebooks given."""
    num_codebooks, _, width = codebooks.shape
    weight = dequantize(codes, codebooks, row_scales)
    distance = (buffer - weight).reshape(-1, width).square_().sum(dim=1)
    chosen = distance.topk(count, sorted=False).indices
    flat = codes.view(-1, num_codebooks)
    code = flat[chosen].to(torch.int32)
    old = code.clone()
    scales = _nonzero(row_scales)[chosen // codes.shape[1], None]
    residual = buffer.view(-1, width)[chosen] / scales - _sum_of_entries(code, codebooks)
    for m in order:
        residual += functional.embedding(code[:, m], codebooks[m])
        code[:, m] = _nearest(residual, codebooks[m])
        residual -= functional.embedding(code[:, m], codebooks[m])
    flat[chosen] = code.to(codes.dtype)
    rows = row_scales[chosen // codes.shape[1], None]
    weight.view(-1, width)[chosen] = _sum_of_entries(code, codebooks) * rows
    return weight, (code != old).sum()


def groups_to_change(groups: int, share: float) -> int:
    """`share` of `groups`, rounded up; in decimals, because 0.01 * 700 is more than 7 in binary."""
    return ceil(Fraction(str(share)) * groups)


def _sum_of_entries(code: Tensor, codebooks: Tensor) -> Tensor:
    """Row-normalised groups [n, g] of the codes [n, M], summed in the order of the codebooks like `dequantize`."""
    groups = functional.embedding(code[:, 0], codebooks[0])
    for m in range(1, codebooks.shape[0]):
        groups = groups + functional.embedding(code[:, m], codebooks[m])
    return groups


def _nearest(vectors: Tensor, entries: Tensor) -> Tensor:
    """The nearest entry [K, g] of each vector [n, g]: int32 [n]."""
    scores = torch.addmm(entries.square().sum(dim=1)[None], vectors, entries.T, alpha=-2.0)
    return scores.argmin(dim=1).to(torch.int32)


def _nonzero(row_scales: Tensor) -> Tensor:
    """Scales to divide by. A row of scale zero is zero whatever its codes are, so any divisor serves it."""
    return torch.where(row_scales == 0, 1.0, row_scales)


def reencode_reference(
    codes: Tensor, codebooks: Tensor, row_scales: Tensor, buffer: Tensor, max_code_change: float, order: list[int]
) -> Tensor:
    """The definition, one weight group at a time: the new codes [out, in/g, M]."""
    width = codebooks.shape[2]
    codes = codes.clone()
    entries = range(codebooks.shape[1])
    distances = {}
    for row in range(codes.shape[0]):
        for group in range(codes.shape[1]):
            vector = _sum_of_entries(codes[row, group].int()[None], codebooks)[0] * row_scales[row]
            distances[row, group] = float((buffer[row, group * width : (group + 1) * width] - vector).norm())
    farthest = sorted(distances, key=lambda place: -distances[place])
    for row, group in farthest[: groups_to_change(len(distances), max_code_change)]:
        target = buffer[row, group * width : (group + 1) * width] / row_scales[row]
        for m in order:
            others = torch.zeros(width)
            for n in order:
                if n != m:
                    others = others + codebooks[n, int(codes[row, group, n])]
            codes[row, group, m] = min(entries, key=lambda k: float((target - others - codebooks[m, k]).norm()))
    return codes
