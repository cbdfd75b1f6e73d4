"""The inner loops of the CPU's beam search, compiled for one geometry.

With the sizes of a group, a codebook and a lazy block known to the compiler, every loop over entries or columns is a
fixed number of vector instructions. Arrays are as wide as whole vectors; what fills them up is never chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numba
import numpy as np

LANES = 16  # Numbers in a vector of the processor: float32 in AVX-512, two vectors of AVX2.

# Everything but the assumption that infinity cannot occur: it marks scores that are already taken.
compiled = partial(
    numba.njit, cache=True, nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "contract", "reassoc"}
)


def padded(size: int) -> int:
    """`size` rounded up to whole vectors."""
    return -(-size // LANES) * LANES


@compiled(inline="always")
def _bend_of(bend, scale, hessian, first, entries, top, code, group_size):  # type: ignore[no-untyped-def]
    """bend = s H_jj C_m[old] [g], for the group whose columns start at `first` and the codebook at row `top`."""
    for i in range(group_size):
        total = np.float32(0)
        for j in range(group_size):
            total += hessian[first + i, first + j] * entries[top + j, code]
        bend[i] = scale * total


@compiled(inline="always")
def _key(bits):  # type: ignore[no-untyped-def]
    """An integer that orders like the float32 whose bits these are: only integer minima become vector code."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@compiled(inline="always")
def _lowest_key(bits, h, size):  # type: ignore[no-untyped-def]
    # A length that the compiler does not know keeps it from unrolling this into single comparisons.
    lowest = np.int32(0x7FFFFFFF)
    for k in range(size):
        lowest = min(lowest, _key(bits[h, k]))
    return lowest


@compiled(inline="always")
def _score(scores, h, curvature, place, m, constant, square, slope, entries, group_size, wide):  # type: ignore[no-untyped-def]
    """scores[h, k] = constant + s^2 c H_jj c + slope . c for every entry c of codebook m."""
    for k in range(wide):
        total = constant + square * curvature[place, m, k]
        for i in range(group_size):
            total += slope[i] * entries[m * group_size + i, k]
        scores[h, k] = total


@compiled(inline="always")
def _move(local, after, before, slope, hessian, first, group_size, columns):  # type: ignore[no-untyped-def]
    """local[after] = local[before] + slope @ hessian[group] up to `columns`; beyond the group no one reads."""
    for k in range(columns):
        total = local[before, k]
        for i in range(group_size):
            total += slope[i] * hessian[first + i, k]
        local[after, k] = total


@compiled(inline="always")
def _select(scores, bits, size, tops, alive, chosen, chosen_scores, kept, codebook_size, wide):  # type: ignore[no-untyped-def]
    """The `kept` lowest of scores[:alive] in ascending order, the lower index first among equals.

    `bits` are those of the scores, `tops` the lowest key of each hypothesis; chosen scores are overwritten.
    """
    for nth in range(kept):
        h = 0
        for other in range(1, alive):
            if tops[other] < tops[h]:
                h = other
        best, position = tops[h], np.int32(wide)
        for k in range(wide):
            position = min(position, np.int32(k) if _key(bits[h, k]) == best else np.int32(wide))
        chosen[nth], chosen_scores[nth] = h * codebook_size + position, scores[h, position]
        scores[h, position] = np.inf
        tops[h] = _lowest_key(bits, h, size)


@lru_cache
def compile_walk(group_size: int, codebook_size: int, columns: int) -> Callable[..., None]:
    """The search through one lazy block of at most `columns` columns (whole vectors), for every row.

    The function takes, with E = padded(K): residual [rows * hypotheses, <= columns], hessian [<= columns, columns],
    entries [M * g, E], curvature [places, M, E], visits [places, M], old codes [rows, places, M], row scales [rows],
    the beam's objective [rows, beam_width], links [places, M, rows, beam_width, 2] and the number of hypotheses at the
    start. It visits the last place first and fills `objective` and `links` in place.
    """
    # Numbers alone may be free variables of `walk`: with functions among them numba would not find it in its cache.
    wide, half = padded(codebook_size), padded(columns // 2)

    @compiled()
    def walk(  # type: ignore[no-untyped-def]
        residual, hessian, entries, curvature, visits, old, scales, objective, links, hypotheses
    ):
        places, num_codebooks = visits.shape
        rows, beam_width = objective.shape
        size = entries.shape[1]
        # R of each hypothesis on two sides of `beam_width` rows: a step reads from one side and writes to the other.
        local = np.zeros((2 * beam_width, columns), np.float32)
        scores = np.empty((beam_width, wide), np.float32)
        bits, tops = scores.view(np.int32), np.empty(beam_width, np.int32)
        chosen, chosen_scores = np.empty(beam_width, np.int64), np.empty(beam_width, np.float32)
        bend, slope = np.empty(group_size, np.float32), np.empty(group_size, np.float32)
        for row in range(rows):
            scale, alive, side = scales[row], hypotheses, 0
            for h in range(alive):
                for k in range(residual.shape[1]):
                    local[h, k] = residual[row * hypotheses + h, k]
            for place in range(places - 1, -1, -1):
                first = place * group_size
                for nth in range(num_codebooks):
                    m = visits[place, nth]
                    code, top = old[row, place, m], m * group_size
                    _bend_of(bend, scale, hessian, first, entries, top, code, group_size)
                    for h in range(alive):
                        # The objective of taking the old entry out; `slope` is what putting one in costs a weight.
                        constant = objective[row, h]
                        for i in range(group_size):
                            pull = local[side + h, first + i]
                            constant += scale * entries[top + i, code] * (pull + pull + bend[i])
                            slope[i] = -(scale + scale) * (pull + bend[i])
                        square = scale * scale
                        _score(scores, h, curvature, place, m, constant, square, slope, entries, group_size, wide)
                        tops[h] = _lowest_key(bits, h, size)
                    kept = min(beam_width, alive * codebook_size)
                    _select(scores, bits, size, tops, alive, chosen, chosen_scores, kept, codebook_size, wide)
                    other_side = beam_width - side
                    for h in range(kept):
                        parent, choice = chosen[h] // codebook_size, chosen[h] % codebook_size
                        links[place, nth, row, h, 0], links[place, nth, row, h, 1] = parent, choice
                        # Only differences between hypotheses matter, and small numbers keep them exact.
                        objective[row, h] = chosen_scores[h] - chosen_scores[0]
                        for i in range(group_size):
                            slope[i] = scale * (entries[top + i, code] - entries[top + i, choice])
                        after, before = other_side + h, side + parent
                        if first + group_size <= half:
                            _move(local, after, before, slope, hessian, first, group_size, half)
                        else:
                            _move(local, after, before, slope, hessian, first, group_size, columns)
                    alive, side = kept, other_side

    return walk


@compiled()
def trace_block(entries, visits, old, scales, links, hypotheses, change, ancestors):  # type: ignore[no-untyped-def]
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


@compiled()
def trace_codes(visits, links, codes):  # type: ignore[no-untyped-def]
    """Write the codes [rows, in/g, M] of each row's best hypothesis, following its links from the end of the walk."""
    places, num_codebooks = visits.shape
    for row in range(len(codes)):
        h = 0
        for place in range(places):
            for nth in range(num_codebooks - 1, -1, -1):
                codes[row, place, visits[place, nth]] = links[place, nth, row, h, 1]
                h = links[place, nth, row, h, 0]


def arrays(*tensors: Any) -> list[np.ndarray[Any, Any]]:
    """Views of the tensors for compiled code; the ones it writes to are contiguous, so that they are no copies."""
    return [tensor.contiguous().numpy() for tensor in tensors]
