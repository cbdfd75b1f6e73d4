"""Beam search for the CPU: compiled loops over the rows inside lazy blocks, one BLAS product between two blocks.

Columns are laid out in the reverse order of the walk, so that what is still to come is always a prefix. Within a lazy
block of consecutive groups only the block's own columns of R = (W - W^) H are kept current for each hypothesis; the
columns to come are updated at the block's end by one product, gathered by the hypothesis that each survivor descends
from. With r = R[group], s the row's scale and t = r + s H_jj C_m[old], the score of entry c is
s^2 c H_jj c - 2 s c t, up to a constant of the hypothesis.

Rows never interact. They are cut into fixed chunks, whatever the number of threads, so threads cannot change a bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from oaem.quantization.chunks import for_each_chunk
from oaem.quantization.search_order import SearchOrder
from oaem.quantization.weight import dequantize

LAZY_COLUMNS = 96  # Columns of a lazy block: enough for BLAS, few enough for the first-level cache.
ROW_CHUNK = 64
SCAN = 32  # Scores under one minimum while the best are selected.

# Everything but the assumption that infinity cannot occur: it marks scores that are already taken.
_compiled = partial(
    numba.njit, cache=True, nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "contract", "reassoc"}
)


@dataclass(frozen=True)
class _Walk:
    """One layer in the reverse order of the walk; place p is the p-th group from the end."""

    hessian: Tensor  # [in, in]
    entries: Tensor  # [M * g, K], codebooks with the entry last, for vector instructions
    curvature: Tensor  # [in/g, M, K], c H_jj c by place
    visits: Tensor  # [in/g, M], codebooks in the order of their visit by place
    beam_width: int


@torch.no_grad()
def beam_search_numba(
    weight: Tensor,
    hessian: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    row_scales: Tensor,
    beam_width: int,
    order: SearchOrder,
) -> Tensor:
    """The codes [out, in/g, M] after one pass; arguments as in `beam_search.beam_search`. Uses torch's threads."""
    num_codebooks, codebook_size, group_size = codebooks.shape
    groups = order.groups.flip(0)
    columns = (groups[:, None] * group_size + torch.arange(group_size)).flatten()
    laid_out = hessian.float()[columns][:, columns].contiguous()
    tiles = laid_out.unflatten(0, (-1, group_size)).unflatten(2, (-1, group_size))
    blocks = tiles.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # H_jj [in/g, g, g]
    entries = codebooks.float()
    curvature = torch.stack([torch.einsum("ki,jil,kl->jk", table, blocks, table) for table in entries], dim=1)
    walk = _Walk(
        laid_out,
        entries.transpose(1, 2).reshape(num_codebooks * group_size, codebook_size),
        curvature.contiguous(),
        order.codebooks.flip(0).contiguous(),
        beam_width,
    )
    difference = (weight - dequantize(codes, codebooks, row_scales)).float()[:, columns]
    scales = row_scales.float()
    old = codes.to(torch.int32)[:, groups]
    new = torch.empty_like(old)

    def search(start: int) -> None:
        rows = slice(start, start + ROW_CHUNK)
        new[rows] = _search_rows(walk, difference[rows], old[rows].contiguous(), scales[rows])

    for_each_chunk(search, range(0, len(weight), ROW_CHUNK))
    return torch.empty_like(codes).index_copy_(1, groups, new.to(codes.dtype))


def _search_rows(walk: _Walk, difference: Tensor, old: Tensor, scales: Tensor) -> Tensor:
    """The best codes [rows, in/g, M] of a chunk of rows; `difference` is W - W^ [rows, in], `old` the codes now."""
    rows, places, num_codebooks = old.shape
    codebook_size = walk.entries.shape[1]
    group_size = len(walk.entries) // num_codebooks
    residual = difference @ walk.hessian  # R of every hypothesis [rows * hypotheses, columns to come]
    # Every step's beam as links (parent, choice) to the beam before it.
    links = torch.zeros(places, num_codebooks, rows, walk.beam_width, 2, dtype=torch.int32)
    objective = torch.zeros(rows, walk.beam_width)
    hypotheses, span = 1, max(1, LAZY_COLUMNS // group_size)
    for stop in range(places, 0, -span):
        block = slice(max(stop - span, 0), stop)
        here, ahead = slice(block.start * group_size, stop * group_size), block.start * group_size
        inside = walk.hessian[here, here].contiguous()
        entries, curvature, visits, codes = _arrays(
            walk.entries, walk.curvature[block], walk.visits[block], old[:, block]
        )
        scale, best, chain = _arrays(scales, objective, links[block])
        _walk_block(
            *_arrays(residual[:, here], inside), entries, curvature, visits, codes, scale, best, chain, hypotheses
        )
        survivors = min(walk.beam_width, hypotheses * codebook_size ** (num_codebooks * (stop - block.start)))
        change = torch.zeros(rows * survivors, here.stop - here.start)
        ancestors = torch.empty(rows * survivors, dtype=torch.int32)
        _trace_block(entries, visits, codes, scale, chain, hypotheses, *_arrays(change, ancestors))
        hypotheses = survivors
        residual = residual[:, :ahead].index_select(0, ancestors).addmm_(change, walk.hessian[here, :ahead], alpha=-1)
    new = torch.empty_like(old)
    _trace_codes(*_arrays(walk.visits, links, new))
    return new


def _arrays(*tensors: Tensor) -> list[np.ndarray[Any, Any]]:
    """Views of the tensors for compiled code; the ones it writes to are contiguous, so that they are no copies."""
    return [tensor.contiguous().numpy() for tensor in tensors]


@_compiled()
def _walk_block(  # type: ignore[no-untyped-def]
    residual, hessian, entries, curvature, visits, old, scales, objective, links, hypotheses
):
    """Visit the groups of a lazy block, last place first, for every row; fills `objective` and `links`."""
    places, num_codebooks, codebook_size = curvature.shape
    group_size, columns = len(entries) // num_codebooks, len(hessian)
    rows, width = objective.shape
    # R of each hypothesis on two sides of `width` rows: a step reads from one side and writes to the other.
    local = np.empty((2 * width, columns), np.float32)
    storage = np.empty(_stretches(width * codebook_size) * SCAN, np.float32)
    scores = storage[: width * codebook_size].reshape(width, codebook_size)
    stretches = storage.reshape(-1, SCAN)
    minima = np.empty(len(stretches), np.float32)
    chosen, chosen_scores = np.empty(width, np.int64), np.empty(width, np.float32)
    bend, slope = np.empty(group_size, np.float32), np.empty(group_size, np.float32)
    for row in range(rows):
        scale, alive, side = scales[row], hypotheses, 0
        for h in range(alive):
            for k in range(columns):
                local[h, k] = residual[row * hypotheses + h, k]
        for place in range(places - 1, -1, -1):
            first = place * group_size
            for nth in range(num_codebooks):
                m = visits[place, nth]
                code = old[row, place, m]
                _bend(bend, scale, hessian, first, entries, m * group_size, code)
                for h in range(alive):
                    # The objective of taking the old entry out; `slope` is what putting an entry in costs per weight.
                    constant = objective[row, h]
                    for i in range(group_size):
                        pull = local[side * width + h, first + i]
                        constant += scale * entries[m * group_size + i, code] * (2 * pull + bend[i])
                        slope[i] = -2 * scale * (pull + bend[i])
                    for k in range(codebook_size):
                        scores[h, k] = constant + scale * scale * curvature[place, m, k]
                    _add_combination(scores, h, codebook_size, slope, entries, m * group_size)
                kept = min(width, alive * codebook_size)
                _select(storage, stretches, minima, alive * codebook_size, chosen, chosen_scores, kept)
                for h in range(kept):
                    parent, choice = chosen[h] // codebook_size, chosen[h] % codebook_size
                    links[place, nth, row, h, 0], links[place, nth, row, h, 1] = parent, choice
                    # Only differences between hypotheses matter, and small numbers keep them exact.
                    objective[row, h] = chosen_scores[h] - chosen_scores[0]
                    for i in range(group_size):
                        entry = m * group_size + i
                        slope[i] = scale * (entries[entry, code] - entries[entry, choice])
                    before, after = side * width + parent, (1 - side) * width + h
                    for k in range(first + group_size):
                        local[after, k] = local[before, k]
                    _add_combination(local, after, first + group_size, slope, hessian, first)
                alive, side = kept, 1 - side


@_compiled(inline="always")
def _bend(bend, scale, hessian, first, entries, top, code):  # type: ignore[no-untyped-def]
    """bend = s H_jj C_m[old] [g], for the group whose columns start at `first` and the codebook at row `top`."""
    for i in range(len(bend)):
        total = np.float32(0)
        for j in range(len(bend)):
            total += hessian[first + i, first + j] * entries[top + j, code]
        bend[i] = scale * total


@_compiled(inline="always")
def _add_combination(target, row, count, coefficients, vectors, top):  # type: ignore[no-untyped-def]
    """target[row, :count] += coefficients @ vectors[top : top + g, :count]; four terms at once spare memory traffic."""
    i, terms = 0, len(coefficients)
    while i + 4 <= terms:
        a, b, c, d = coefficients[i], coefficients[i + 1], coefficients[i + 2], coefficients[i + 3]
        for k in range(count):
            target[row, k] += (a * vectors[top + i, k] + b * vectors[top + i + 1, k]) + (
                c * vectors[top + i + 2, k] + d * vectors[top + i + 3, k]
            )
        i += 4
    while i + 2 <= terms:
        a, b = coefficients[i], coefficients[i + 1]
        for k in range(count):
            target[row, k] += a * vectors[top + i, k] + b * vectors[top + i + 1, k]
        i += 2
    if i < terms:
        a = coefficients[i]
        for k in range(count):
            target[row, k] += a * vectors[top + i, k]


@_compiled(inline="always")
def _stretches(count):  # type: ignore[no-untyped-def]
    return (count + SCAN - 1) // SCAN


@_compiled(inline="always")
def _select(storage, stretches, minima, count, chosen, chosen_scores, kept):  # type: ignore[no-untyped-def]
    """The `kept` lowest of the first `count` scores in ascending order, the lower index first among equals.

    `stretches` is `storage` cut into rows of SCAN; chosen scores are overwritten with infinity.
    """
    used = _stretches(count)
    for index in range(count, used * SCAN):
        storage[index] = np.inf
    for stretch in range(used):
        minima[stretch] = _minimum(stretches, stretch)
    for h in range(kept):
        nearest = 0
        for stretch in range(1, used):
            if minima[stretch] < minima[nearest]:
                nearest = stretch
        position = SCAN - 1
        for i in range(SCAN - 1, -1, -1):
            if stretches[nearest, i] == minima[nearest]:
                position = i
        chosen[h], chosen_scores[h] = nearest * SCAN + position, stretches[nearest, position]
        stretches[nearest, position] = np.inf
        minima[nearest] = _minimum(stretches, nearest)


@_compiled(inline="always")
def _minimum(stretches, stretch):  # type: ignore[no-untyped-def]
    lowest = np.float32(np.inf)
    for i in range(SCAN):
        lowest = min(lowest, stretches[stretch, i])
    return lowest


@_compiled()
def _trace_block(entries, visits, old, scales, links, hypotheses, change, ancestors):  # type: ignore[no-untyped-def]
    """Follow each survivor of a block back to its start: fills what it changed in W^ and where it came from."""
    places, num_codebooks = visits.shape
    group_size, rows = len(entries) // num_codebooks, len(old)
    survivors = len(ancestors) // rows
    for row in range(rows):
        for survivor in range(survivors):
            target, h = row * survivors + survivor, survivor
            for place in range(places):
                for nth in range(num_codebooks - 1, -1, -1):
                    m = visits[place, nth]
                    code, choice = old[row, place, m], links[place, nth, row, h, 1]
                    for i in range(group_size):
                        step = entries[m * group_size + i, choice] - entries[m * group_size + i, code]
                        change[target, place * group_size + i] += scales[row] * step
                    h = links[place, nth, row, h, 0]
            ancestors[target] = row * hypotheses + h


@_compiled()
def _trace_codes(visits, links, codes):  # type: ignore[no-untyped-def]
    """Write the codes [rows, in/g, M] of each row's best hypothesis, following its links from the end of the walk."""
    places, num_codebooks = visits.shape
    for row in range(len(codes)):
        h = 0
        for place in range(places):
            for nth in range(num_codebooks - 1, -1, -1):
                codes[row, place, visits[place, nth]] = links[place, nth, row, h, 1]
                h = links[place, nth, row, h, 0]
