"""The Triton kernels of the beam search; `beam_search.py` says how they fit together.

What kernels share with each other, in order of the walk; B is the beam width rounded up to a power of two:

    state       [out, columns of a lazy block, B]   R = (W - W^) H of every hypothesis, in the block's own columns
    tails       [out * B, columns of a lazy block]  change of W^ within the block, by hypothesis
    bases       [out * B, in]                       R up to, but not with, the tails: one line for each distinct past

A program is one warp and owns one row: it synchronises its own lanes alone, wherever they exchange values in memory.
"""

from __future__ import annotations

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["depth", "columns"])
def advance(
    bases, tails, hessian, target, base_lines, tail_lines, target_lines, count, depth, columns,
    base_stride, tail_stride, hessian_stride, part_stride, row_stride, line_stride, column_stride,
    B: tl.constexpr, HAS_BASE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    CHUNK: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """target[target_lines] = bases[base_lines] - tails[tail_lines] @ hessian, for the first `count` lines of each list.

    Pointers are already at the first column (hessian: at its first row, too); there are `columns` of them. hessian
    holds three bfloat16 parts that add up to the float32 matrix; of the nine products of parts the six largest count.
    """
    lines = tl.load(count)
    first = tl.program_id(0) * BM
    if first < lines:
        i = first + tl.arange(0, BM)
        column = tl.program_id(1) * BN + tl.arange(0, BN)
        alive, inside = i < lines, column < columns
        tail = tl.load(tail_lines + i, mask=alive, other=0).to(tl.int64) * tail_stride
        product = tl.zeros((BM, BN), tl.float32)
        for chunk in range(0, depth, CHUNK):
            # Tensor cores cut off what does not fit their sum instead of rounding it, so no sum runs for long.
            part = tl.zeros((BM, BN), tl.float32)
            for start in range(chunk, tl.minimum(chunk + CHUNK, depth), BK):
                k = start + tl.arange(0, BK)
                a = tl.load(tails + tail[:, None] + k[None, :], mask=alive[:, None] & (k < depth)[None, :], other=0.0)
                a0 = a.to(tl.bfloat16)
                a1 = (a - a0.to(tl.float32)).to(tl.bfloat16)
                a2 = (a - a0.to(tl.float32) - a1.to(tl.float32)).to(tl.bfloat16)
                place = hessian + k.to(tl.int64)[:, None] * hessian_stride + column[None, :]
                real = (k < depth)[:, None] & inside[None, :]
                b0 = tl.load(place, mask=real, other=0.0).to(OPERAND)
                b1 = tl.load(place + part_stride, mask=real, other=0.0).to(OPERAND)
                b2 = tl.load(place + 2 * part_stride, mask=real, other=0.0).to(OPERAND)
                part = tl.dot(a2.to(OPERAND), b0, part)
                part = tl.dot(a1.to(OPERAND), b1, part)
                part = tl.dot(a0.to(OPERAND), b2, part)
                part = tl.dot(a1.to(OPERAND), b0, part)
                part = tl.dot(a0.to(OPERAND), b1, part)
                part = tl.dot(a0.to(OPERAND), b0, part)
            product += part
        result = -product
        if HAS_BASE:
            base = tl.load(base_lines + i, mask=alive, other=0).to(tl.int64) * base_stride
            result += tl.load(bases + base[:, None] + column[None, :], mask=alive[:, None] & inside[None, :], other=0.0)
        line = tl.load(target_lines + i, mask=alive, other=0).to(tl.int64)
        offset = (line // B) * row_stride + (line % B) * line_stride
        place = target + offset[:, None] + column.to(tl.int64)[None, :] * column_stride
        tl.store(place, result, mask=alive[:, None] & inside[None, :])


@triton.jit
def _score(
    state, slopes, scores, objective, entries, entries_t, curvature, curvature_t, corner, scale, old, in_features,
    B: tl.constexpr, K: tl.constexpr, g: tl.constexpr, G: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write the objective after every replacement of one code to `scores` [B, K].

    state: R of the group [g, B]; slopes: scratch [g + 1, B]; entries [K, g] and entries_t [g, K]: the codebook;
    curvature [K]: c H_jj c; corner: H_jj. With t = R + s H_jj c[old], an entry scores s^2 c H_jj c - 2 s c t more than
    none. The columns of `scores` stand in the order of entries_t and curvature_t.
    """
    h, d = tl.arange(0, B), tl.arange(0, G)
    real = d < g
    bend = tl.zeros((G,), tl.float32)
    for e in tl.static_range(g):
        bend += tl.load(entries + old * g + e) * tl.load(corner + e * in_features + d, mask=real, other=0.0)
    r = tl.load(state + d[:, None] * B + h[None, :], mask=real[:, None], other=0.0)
    slope = -2.0 * scale * (r + scale * bend[:, None])
    current = tl.load(entries + old * g + d, mask=real, other=0.0)
    base = objective - scale * scale * tl.load(curvature + old) - tl.sum(current[:, None] * slope, axis=0)
    tl.store(slopes + d[:, None] * B + h[None, :], slope, mask=real[:, None])
    tl.store(slopes + g * B + h, base)
    tl.debug_barrier()
    for first in range(0, B, BH):
        hypothesis = first + tl.arange(0, BH)
        for start in range(0, K, BK):
            k = start + tl.arange(0, BK)
            bends = scale * scale * tl.load(curvature_t + k)
            score = tl.load(slopes + g * B + hypothesis)[:, None] + bends[None, :]
            for e in tl.static_range(g):
                score += tl.load(slopes + e * B + hypothesis)[:, None] * tl.load(entries_t + e * K + k)[None, :]
            tl.store(scores + hypothesis[:, None] * K + k[None, :], score)
    tl.debug_barrier()


@triton.jit
def _select(scores, width, B: tl.constexpr, K: tl.constexpr, CLASS: tl.constexpr, PART: tl.constexpr):
    """The `width` least of `scores`: their values [B] relative to the least, their hypotheses [B] and their codes [B].

    The candidates are cut into classes of CLASS neighbouring codes. Only the classes' minima are searched; the class
    that yields a survivor is looked at again without it. Of equal scores the first counts, as in the reference. Places
    beyond the candidates there are hold infinity. The members of a class stand K / CLASS columns apart, so that a warp
    reads members of neighbouring classes side by side.
    """
    WIDE: tl.constexpr = K // CLASS  # classes of one hypothesis
    CLASSES: tl.constexpr = B * WIDE
    h, number, member = tl.arange(0, B), tl.arange(0, CLASSES), tl.arange(0, CLASS)
    place = number // WIDE * K + number % WIDE
    least = tl.full((CLASSES,), float("inf"), tl.float32)
    for start in range(0, CLASS, PART):
        part = tl.load(scores + place[None, :] + (start + tl.arange(0, PART))[:, None] * WIDE)
        least = tl.minimum(least, tl.min(part, axis=0))
    values = tl.full((B,), float("inf"), tl.float32)
    chosen = tl.zeros((B,), tl.int32)
    for i in range(width):
        # The bounds keep every load inside the array even if all scores are NaN.
        of = tl.min(tl.where(least == tl.min(least), number, CLASSES - 1))
        line = scores + of // WIDE * K + of % WIDE
        members = tl.load(line + member * WIDE)
        best = tl.min(members)
        at = tl.min(tl.where(members == best, member, CLASS - 1))
        tl.store(line + at * WIDE, float("inf"))
        least = tl.where(number == of, tl.min(tl.where(member == at, float("inf"), members)), least)
        values = tl.where(h == i, best, values)
        chosen = tl.where(h == i, of // WIDE * K + of % WIDE * CLASS + at, chosen)
        tl.debug_barrier()
    first = tl.sum(tl.where(h == 0, values, 0.0))
    alive = values < float("inf")
    # A dead hypothesis takes the best one's past, so that it keeps no past of its own alive.
    chosen = tl.where(alive, chosen, tl.sum(tl.where(h == 0, chosen, 0)))
    return tl.where(alive, values - first, float("inf")), chosen // K, chosen % K


@triton.jit
def _move_on(
    state, entries, corner, scale, old, parent, code, in_features,
    B: tl.constexpr, g: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Bring R of the group [g, B] up to date after one code was replaced."""
    h, d = tl.arange(0, B), tl.arange(0, G)
    real = d < g
    r = tl.load(state + d[:, None] * B + parent[None, :], mask=real[:, None], other=0.0)
    for e in tl.static_range(g):
        change = scale * (tl.load(entries + code * g + e) - tl.load(entries + old * g + e))
        r -= change[None, :] * tl.load(corner + e * in_features + d, mask=real, other=0.0)[:, None]
    tl.debug_barrier()
    tl.store(state + d[:, None] * B + h[None, :], r, mask=real[:, None])
    tl.debug_barrier()


@triton.jit
def _change_of_group(
    parents, choices, entries, visits, old_codes, scale, hypothesis,
    M: tl.constexpr, K: tl.constexpr, g: tl.constexpr, G: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Follow the M steps of one group backwards: hypothesis before it [B] and change of W^ in it [G, B]."""
    d = tl.arange(0, G)
    change = tl.zeros((G, B), tl.float32)
    for back in range(M):
        step = M - 1 - back
        m = tl.load(visits + step)
        code = tl.load(choices + step * B + hypothesis)
        old = tl.load(old_codes + m)
        book = entries + m * K * g
        mask = (d < g)[:, None]
        new_entry = tl.load(book + code[None, :] * g + d[:, None], mask=mask, other=0.0)
        change += scale * (new_entry - tl.load(book + old * g + d, mask=d < g, other=0.0)[:, None])
        hypothesis = tl.load(parents + step * B + hypothesis)
    return hypothesis, change


@triton.jit
def _leave_group(
    state, slopes, hessian, source, change, next_column, columns, in_features,
    B: tl.constexpr, g: tl.constexpr, G: tl.constexpr, COLUMNS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Update R [COLUMNS, B] in the columns still to come. hessian: at the group's row and the block's first column."""
    h, d = tl.arange(0, B), tl.arange(0, G)
    tl.store(slopes + d[:, None] * B + h[None, :], change, mask=(d < g)[:, None])
    tl.debug_barrier()
    for start in range(next_column // BC * BC, columns, BC):
        c = start + tl.arange(0, BC)
        inside = c < columns
        r = tl.load(state + c[:, None] * B + source[None, :], mask=inside[:, None], other=0.0)
        for e in tl.static_range(g):
            line = tl.load(hessian + e * in_features + c, mask=inside, other=0.0)
            r -= line[:, None] * tl.load(slopes + e * B + h)[None, :]
        tl.debug_barrier()
        tl.store(state + c[:, None] * B + h[None, :], r, mask=inside[:, None])
    tl.debug_barrier()


@triton.jit
def _leave_block(
    row, ancestor, lines, ancestors, base_list, tail_list, target_list, count, B: tl.constexpr,
):  # fmt: skip
    """List the distinct pasts that survive the block, and point every hypothesis to the line its past will have."""
    h = tl.arange(0, B)
    tl.store(ancestors + row * B + h, ancestor)
    descends = (ancestor[:, None] == h[None, :]).to(tl.int32)  # [hypothesis, ancestor]
    survives = tl.max(descends, axis=0)
    rank = tl.cumsum(survives, axis=0) - survives
    place = tl.atomic_add(count, tl.sum(survives), sem="relaxed") + rank
    tl.store(base_list + place, tl.load(lines + row * B + h), mask=survives > 0)
    tl.store(tail_list + place, row * B + h, mask=survives > 0)
    tl.store(target_list + place, row * B + rank, mask=survives > 0)
    tl.debug_barrier()
    tl.store(lines + row * B + h, row * B + tl.sum(descends * rank[None, :], axis=1))


@triton.jit(do_not_specialize=["first_group", "groups"])
def search_block(
    state, scores, slopes, parents, choices, objective, tails, ancestors, history, lines,
    base_list, tail_list, target_list, count,
    hessian, entries, entries_t, curvature, curvature_t, visits, old_codes, scales,
    first_group, groups, all_groups, in_features, width,
    M: tl.constexpr, K: tl.constexpr, g: tl.constexpr, G: tl.constexpr, B: tl.constexpr, GROUPS: tl.constexpr,
    BH: tl.constexpr, BK: tl.constexpr, CLASS: tl.constexpr, PART: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Visit `groups` groups from `first_group` on for one row."""
    COLUMNS: tl.constexpr = GROUPS * g
    row = tl.program_id(0).to(tl.int64)
    h, d = tl.arange(0, B), tl.arange(0, G)
    state += row * COLUMNS * B
    scores += row * B * K
    slopes += row * (g + 1) * B
    parents += row * GROUPS * M * B
    choices += row * GROUPS * M * B
    history += row * B * GROUPS * M
    old_codes += (row * all_groups + first_group) * M
    visits += first_group * M
    scale = tl.load(scales + row)
    best = tl.load(objective + row * B + h)
    hessian += first_group.to(tl.int64) * g * (in_features + 1)
    for group in range(groups):
        corner = hessian + group * g * (in_features + 1)
        for turn in range(M):
            m = tl.load(visits + group * M + turn)
            old = tl.load(old_codes + group * M + m)
            book = entries + m * K * g
            bends = ((first_group + group) * M + m) * K
            _score(state + group * g * B, slopes, scores, best, book, entries_t + m * K * g, curvature + bends,
                   curvature_t + bends, corner, scale, old, in_features, B, K, g, G, BH, BK)  # fmt: skip
            best, parent, code = _select(scores, width, B, K, CLASS, PART)
            tl.store(parents + (group * M + turn) * B + h, parent)
            tl.store(choices + (group * M + turn) * B + h, code)
            _move_on(state + group * g * B, book, corner, scale, old, parent, code, in_features, B, g, G)
        steps = group * M * B
        source, change = _change_of_group(parents + steps, choices + steps, entries, visits + group * M,
                                          old_codes + group * M, scale, h, M, K, g, G, B)  # fmt: skip
        _leave_group(state, slopes, hessian + group * g * in_features, source, change, (group + 1) * g, groups * g,
                     in_features, B, g, G, COLUMNS, BC)  # fmt: skip
    tl.store(objective + row * B + h, best)
    hypothesis = h
    for back in range(groups):
        group = groups - 1 - back
        steps = group * M * B
        last = hypothesis
        hypothesis, change = _change_of_group(parents + steps, choices + steps, entries, visits + group * M,
                                              old_codes + group * M, scale, last, M, K, g, G, B)  # fmt: skip
        tail = tails + (row * B + h)[None, :] * COLUMNS + group * g + d[:, None]
        tl.store(tail, change, mask=(d < g)[:, None])
        for step in range(M):
            turn = M - 1 - step
            m = tl.load(visits + group * M + turn)
            code = tl.load(choices + (group * M + turn) * B + last)
            tl.store(history + (h * GROUPS + group) * M + m, code.to(history.dtype.element_ty))
            last = tl.load(parents + (group * M + turn) * B + last)
    _leave_block(row, hypothesis, lines, ancestors, base_list, tail_list, target_list, count, B)


@triton.jit(do_not_specialize=["blocks"])
def trace_back(
    history, ancestors, best_codes, blocks, lines, row_length,
    B: tl.constexpr, LENGTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Follow one row's best hypothesis through all blocks, last to first, and write its codes [row_length].

    history [blocks, rows * B, LENGTH]: codes of every block; ancestors [blocks, rows * B]: hypothesis before the block.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, PADDED)
    hypothesis = 0
    for back in range(blocks):
        block = (blocks - 1 - back).to(tl.int64)
        line = block * lines + row * B + hypothesis
        inside = (i < LENGTH) & (block * LENGTH + i < row_length)
        codes = tl.load(history + line * LENGTH + i, mask=inside, other=0)
        tl.store(best_codes + row * row_length + block * LENGTH + i, codes.to(tl.int32), mask=inside)
        hypothesis = tl.load(ancestors + line)
