"""Beam search for CUDA devices, the same search as `beam_search.beam_search`.

The columns are permuted into the order of the walk and cut into lazy blocks of consecutive groups. For every block

1. `advance` brings R = (W - W^) H of all hypotheses up to date in the block's own columns,
2. `search_block`, one warp a row, visits the block's groups for all hypotheses of the row,
3. `advance` brings R up to date in the columns beyond the block.

The hypotheses of a row soon descend from one ancestor: mostly from a single hypothesis at the start of the block that
they are leaving. Step 3 therefore runs one block behind, and once for each past that still has a descendant instead of
once for each hypothesis; a hypothesis owns no more than the change it made in the last block, its tail. That is exact:
a row whose hypotheses do not share their past has as many lines in the product as it has pasts.

All arithmetic is float32. Products run on bfloat16 tensor cores with every operand in three parts, all its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from oaem.quantization.kernels.cuda.beam_search_kernels import advance, search_block, trace_back
from oaem.quantization.search_order import SearchOrder
from oaem.quantization.weight import dequantize

BLOCK_COLUMNS = 128  # of a lazy block at most: longer blocks search more slowly, shorter ones multiply the products.
STRIP = 4096  # rows of the Hessian that are permuted or split at a time
MEMORY = 8 * 2**30  # bytes of working memory at most; more rows than fit are searched in turns.


@dataclass(frozen=True)
class _Walk:
    """One layer laid out in the order of the walk."""

    hessian: Tensor  # [in, in], rows and columns permuted
    parts: Tensor  # bfloat16 [3, in, in]: the same, as a sum
    entries: Tensor  # [M, K, g]
    curvature: Tensor  # [in/g, M, K], c H_jj c
    visits: Tensor  # [in/g, M] int32, codebooks in the order of their visit
    beam_width: int

    def strided(self, by_entry: Tensor) -> Tensor:
        """A table [..., K] in the order of the kernel's scores: the members of a class stand K / class_size apart."""
        return by_entry.unflatten(-1, (-1, self.class_size)).transpose(-1, -2).flatten(-2).contiguous()

    @property
    def beam(self) -> int:
        """B: lines kept for the hypotheses of a row, a power of two."""
        return triton.next_power_of_2(self.beam_width)

    @property
    def block_groups(self) -> int:
        """Groups in a lazy block."""
        return min(max(1, BLOCK_COLUMNS // self.entries.shape[2]), len(self.visits))

    @property
    def class_size(self) -> int:
        """Neighbouring candidates that share a minimum in the selection: some 256 to 1024 classes a row."""
        candidates = self.beam * self.entries.shape[1]
        return min(self.entries.shape[1], max(1, self.entries.shape[1] // 32, candidates // 1024))

    def row_bytes(self) -> int:
        """Working memory of one row: bases twice, scores, tails twice, state and history."""
        groups, num_codebooks, codebook_size = self.curvature.shape
        in_features = len(self.hessian)
        code_bytes = groups * num_codebooks * (1 if codebook_size <= 256 else 4)
        return self.beam * (8 * in_features + 4 * codebook_size + 16 * BLOCK_COLUMNS + code_bytes)


@torch.no_grad()
def beam_search_triton(
    weight: Tensor,
    hessian: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    row_scales: Tensor,
    beam_width: int,
    order: SearchOrder,
) -> Tensor:
    """The codes [out, in/g, M] after one pass; see `beam_search.beam_search` for the arguments.

    Equal to the reference but where two candidates' scores differ by no more than float32 rounding.
    """
    groups = order.groups.to(weight.device)
    group_size = codebooks.shape[2]
    columns = (groups[:, None] * group_size + torch.arange(group_size, device=weight.device)).flatten()
    walk = _lay_out(hessian, codebooks, columns, order, beam_width)
    difference = (weight - dequantize(codes, codebooks, row_scales)).float()[:, columns]
    old = codes.to(torch.int32)[:, groups].contiguous()
    scales = row_scales.float().contiguous()
    found = torch.empty_like(old)
    rows = max(1, min(len(weight), MEMORY // walk.row_bytes()))
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        _search_rows(walk, difference[part], old[part], scales[part], found[part])
    new = torch.empty_like(codes)
    new[:, groups] = found.to(codes.dtype)
    return new


def _lay_out(hessian: Tensor, codebooks: Tensor, columns: Tensor, order: SearchOrder, beam_width: int) -> _Walk:
    permuted = _permuted(hessian, columns)
    entries = codebooks.float().contiguous()
    groups, group_size = len(order.groups), codebooks.shape[2]
    starts = torch.arange(groups, device=permuted.device)[:, None] * group_size
    within = starts + torch.arange(group_size, device=permuted.device)
    blocks = permuted[within[:, :, None], within[:, None, :]]  # H_jj by position [in/g, g, g]
    curvature = torch.zeros(groups, *entries.shape[:2], device=permuted.device)
    for i in range(group_size):
        # A sum of products, not a matrix product: no global switch may turn it into TF32.
        bend = sum(blocks[:, None, None, i, k] * entries[None, :, :, k] for k in range(group_size))
        curvature += bend * entries[None, :, :, i]
    visits = order.codebooks.to(permuted.device, torch.int32).contiguous()
    return _Walk(permuted, _parts(permuted), entries, curvature, visits, beam_width)


def _permuted(hessian: Tensor, columns: Tensor) -> Tensor:
    """`hessian` in float32 with rows and columns in this order; a strip of rows at a time, for it may be gigabytes."""
    permuted = torch.empty(hessian.shape, device=hessian.device)
    for strip, rows in zip(permuted.split(STRIP), columns.split(STRIP), strict=True):
        strip.copy_(hessian[rows][:, columns])
    return permuted


def _parts(matrix: Tensor) -> Tensor:
    """Three bfloat16 matrices [3, ...] whose sum is `matrix`, all its bits; a strip of rows at a time."""
    parts = torch.empty(3, *matrix.shape, dtype=torch.bfloat16, device=matrix.device)
    for start in range(0, len(matrix), STRIP):
        rest = matrix[start : start + STRIP]
        for part in parts[:, start : start + STRIP]:
            part.copy_(rest)
            rest = rest - part.float()
    return parts


class _Rows:
    """Everything that the hypotheses of some rows own during a pass."""

    def __init__(self, walk: _Walk, rows: int) -> None:
        groups, num_codebooks, codebook_size = walk.curvature.shape
        beam, length = walk.beam, walk.block_groups * walk.entries.shape[2]
        device, lines = walk.hessian.device, rows * beam
        steps = walk.block_groups * num_codebooks
        blocks = triton.cdiv(groups, walk.block_groups)

        def floats(*shape: int) -> Tensor:
            return torch.empty(shape, device=device)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device, dtype=torch.int32)

        self.bases, self.new_bases = floats(lines, len(walk.hessian)), floats(lines, len(walk.hessian))
        self.tails, self.new_tails = torch.zeros(lines, length, device=device), floats(lines, length)
        self.state = floats(rows, length, beam)
        self.scores = floats(lines, codebook_size)
        self.slopes = floats(rows, walk.entries.shape[2] + 1, beam)
        self.parents, self.choices = integers(rows, steps, beam), integers(rows, steps, beam)
        self.objective = torch.full((rows, beam), float("inf"), device=device)
        self.objective[:, 0] = 0  # The search starts from one hypothesis, the present codes.
        self.ancestors = integers(blocks, lines)
        code_type = torch.uint8 if codebook_size <= 256 else torch.int32
        self.history = torch.empty(blocks, lines, steps, device=device, dtype=code_type)
        self.every_line = torch.arange(lines, device=device, dtype=torch.int32)
        self.lines = self.every_line // beam * beam  # in `bases`, of every hypothesis's past
        self.survivors = [integers(lines) for _ in range(3)]  # lines of bases, tails and new bases
        # Survivors by block, then all lines, then all rows; four apart so that every number is aligned alike.
        self.counts = integers(blocks + 2, 4)
        self.counts[-2], self.counts[-1] = lines, rows


def _search_rows(walk: _Walk, difference: Tensor, old: Tensor, scales: Tensor, found: Tensor) -> None:
    """Walk all groups for some rows and write their best codes to `found` [rows, in/g, M].

    difference: W - W^ [rows, in].
    """
    rows, groups, num_codebooks = old.shape
    own = _Rows(walk, rows)
    codebook_size, group_size = walk.entries.shape[1:]
    length = walk.block_groups * group_size
    entries_t, curvature_t = walk.strided(walk.entries.transpose(1, 2)), walk.strided(walk.curvature)
    _start(walk, own, difference)
    for block, first in enumerate(range(0, groups, walk.block_groups)):
        count = min(walk.block_groups, groups - first)
        here = slice(first * group_size, (first + count) * group_size)
        past = slice(max(0, here.start - length), here.start)
        _enter_block(walk, own, past, here)
        search_block[(rows,)](
            own.state, own.scores, own.slopes, own.parents, own.choices, own.objective, own.new_tails,
            own.ancestors[block], own.history[block], own.lines, *own.survivors, own.counts[block],
            walk.hessian, walk.entries, entries_t, walk.curvature, curvature_t, walk.visits, old, scales,
            first, count, groups, len(walk.hessian), walk.beam_width,
            M=num_codebooks, K=codebook_size, g=group_size, G=triton.next_power_of_2(group_size), B=walk.beam,
            GROUPS=walk.block_groups, CLASS=walk.class_size, **_tiles(walk), num_warps=1,
        )  # fmt: skip
        if block:
            _leave_past(walk, own, past, here.stop, own.counts[block])
        own.tails, own.new_tails = own.new_tails, own.tails
    steps = walk.block_groups * num_codebooks
    trace_back[(rows,)](
        own.history, own.ancestors, found, len(own.history), rows * walk.beam, groups * num_codebooks,
        B=walk.beam, LENGTH=steps, PADDED=triton.next_power_of_2(steps), num_warps=1,
    )  # fmt: skip


def _tiles(walk: _Walk) -> dict[str, int]:
    """How much is looked at a time, as far as a warp's registers go: hypotheses, entries, class members, columns."""
    codebook_size = walk.entries.shape[1]
    classes = walk.beam * codebook_size // walk.class_size
    part = max(1, min(walk.class_size, 2048 // classes))
    return {"BH": min(walk.beam, 2), "BK": min(codebook_size, 256), "PART": part, "BC": max(1, 256 // walk.beam)}


def _start(walk: _Walk, own: _Rows, difference: Tensor) -> None:
    """R of the present codes, on the first line of each row in `bases`."""
    lines = own.every_line[: len(difference)]
    # The kernel subtracts a product: W^ - W makes that R = (W - W^) H.
    _advance(walk, None, -difference, walk.parts, own.bases, (lines, lines, lines * walk.beam), own.counts[-1],
             len(difference), own.bases.shape[1], _lines_of(own.bases, walk.beam))  # fmt: skip


def _enter_block(walk: _Walk, own: _Rows, past: slice, here: slice) -> None:
    """R of every hypothesis in the columns `here`, its tail's change of the columns `past` included."""
    strides, columns = (own.state.stride(0), 1, walk.beam), here.stop - here.start
    _advance(walk, own.bases[:, here], own.tails[:, : past.stop - past.start], walk.parts[:, past, here], own.state,
             (own.lines, own.every_line, own.every_line), own.counts[-2], len(own.lines), columns, strides)  # fmt: skip


def _leave_past(walk: _Walk, own: _Rows, past: slice, start: int, count: Tensor) -> None:
    """Move the tails that survived into `bases`, for the columns from `start` on."""
    columns = len(walk.hessian) - start
    if columns:
        target = own.new_bases[:, start:]
        _advance(walk, own.bases[:, start:], own.tails, walk.parts[:, past, start:], target, own.survivors, count,
                 len(own.lines), columns, _lines_of(target, walk.beam))  # fmt: skip
    own.bases, own.new_bases = own.new_bases, own.bases


def _lines_of(matrix: Tensor, beam: int) -> tuple[int, int, int]:
    """Strides of row, hypothesis and column in a matrix [rows * B, columns]."""
    return beam * matrix.stride(0), matrix.stride(0), 1


def _advance(
    walk: _Walk,
    bases: Tensor | None,
    tails: Tensor,
    hessian: Tensor,
    target: Tensor,
    lists: Sequence[Tensor],
    count: Tensor,
    lines: int,
    columns: int,
    strides: tuple[int, int, int],
) -> None:
    """Launch `advance` for at most `lines` lines; `count` says how many. hessian: bfloat16 [3, tail, columns]."""
    given = tails if bases is None else bases
    # Triton's interpreter, which runs on the CPU, has no bfloat16 products: there float32 multiplies the same parts.
    operand = tl.bfloat16 if tails.is_cuda else tl.float32
    advance[(triton.cdiv(lines, 128), triton.cdiv(columns, 128))](
        given, tails, hessian, target, *lists, count, tails.shape[1], columns, given.stride(0), tails.stride(0),
        hessian.stride(1), hessian.stride(0), *strides, B=walk.beam, HAS_BASE=bases is not None,
        BM=128, BN=128, BK=32, CHUNK=128, OPERAND=operand, num_warps=8, num_stages=3,
    )  # fmt: skip
