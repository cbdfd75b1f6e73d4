"""A statement judged by several seeds: never by one where the grid has more, and never by their mean alone.

Each seed is a complete set of tables, so a statement is evaluated once for every seed that has all its numbers. Then

one seed       a grid of a single seed: its numbers decide, and the verdict says so.
interval       a plain comparison of two sides, of single numbers or of columns row by row: the sides are paired by
               seed, as logarithms where both are positive, and a 95 % t interval must exclude equality. It holds if
               it holds at both ends of every row's interval, and fails if it fails at both ends of any row's.
every seed     any other statement: at least three seeds, and the same answer on each.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from oaem.presentation.claims.expressions import Cells, Outcome, Step, evaluate, parse
from oaem.presentation.claims.values import Undecided, elements
from oaem.presentation.claims.words import constant, describe
from oaem.presentation.spread import Spread, ratio_spread, spread

Verdict = Literal["holds", "fails", "shown", "undecided"]
MIN_PAIRS = 2  # an interval needs a standard deviation
MIN_SEEDS = 3  # without an interval: two seeds agree by chance half the time
ONE_SEED, INTERVAL, EVERY_SEED = "one seed", "95 % interval, paired by seed", "same on every seed"
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Judgement:
    """A verdict, what it rests on in words and as the comparisons themselves, by which rule and of how many seeds."""

    verdict: Verdict
    words: str
    evidence: str
    rule: str = ""
    seeds: int = 0


@dataclass(frozen=True)
class Paired:
    """One row of a plain comparison over seeds: `kind` is ratio (left / right) or difference (left - right)."""

    kind: Literal["ratio", "difference"]
    over: Spread

    def at_ends(self, sign: str) -> set[bool]:
        """What the comparison says at the two ends of the interval."""
        equal = 1.0 if self.kind == "ratio" else 0.0
        ends = (self.over.mean if end is None else end for end in (self.over.low, self.over.high))
        return {_COMPARE[sign](end, equal) for end in ends}


def judge(expression: str, tolerance: float, cells: Mapping[int, Cells]) -> Judgement:
    """The verdict on a statement from the tables of each seed of a grid."""
    outcomes: dict[int, Outcome] = {}
    reasons = []
    for seed, tables in cells.items():
        try:
            outcomes[seed] = evaluate(expression, tables, tolerance)
        except Undecided as reason:
            reasons.append(str(reason))
    if not outcomes:
        return Judgement("undecided", reasons[0], reasons[0])
    paired = compare(expression, list(outcomes.values()))
    words = describe([outcome.steps for outcome in outcomes.values()], [_interval(row) for row in paired])
    evidence = " | ".join(f"seed {seed}: {'; '.join(outcome.evidence)}" for seed, outcome in outcomes.items())
    answers = [outcome.holds for outcome in outcomes.values()]
    if len(cells) == 1:
        return Judgement(_said(answers[0]), words, evidence, ONE_SEED, 1)
    rule, least = (INTERVAL, MIN_PAIRS) if paired or _plain(expression) else (EVERY_SEED, MIN_SEEDS)
    verdict = _by_interval(outcomes, paired) if rule == INTERVAL else _by_agreement(answers)
    if len(answers) < least:
        verdict, words = "undecided", f"{words} ({len(answers)} of {len(cells)} seeds, too few for a verdict)"
    return Judgement(verdict, words, evidence, rule, len(answers))


def compare(expression: str, outcomes: Sequence[Outcome]) -> list[Paired]:
    """Rows of a plain comparison paired over seeds; empty if the statement is none, or of fewer than two seeds."""
    if len(outcomes) < MIN_PAIRS or not _plain(expression):
        return []
    sides = [_sides(outcome.steps[0]) for outcome in outcomes]
    measured = all(not constant(node) for node in outcomes[0].steps[0].nodes)
    return [_pair(row, measured) for row in zip(*sides, strict=True)]


def _plain(expression: str) -> bool:
    """Whether the statement is one comparison, of numbers or row by row with all(), and not of distances (abs)."""
    node = parse(expression)
    if any(isinstance(inner, ast.Name) and inner.id in ("abs", "tol") for inner in ast.walk(node)):
        return False
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "all" and len(node.args) == 1:
        node = node.args[0]
    return isinstance(node, ast.Compare) and len(node.ops) == 1 and not isinstance(node.ops[0], (ast.Eq, ast.NotEq))


def _sides(step: Step) -> list[tuple[float, float]]:
    left, right = (elements(operand) for operand in step.operands)
    rows = max(len(left), len(right))
    return list(zip(*(side * rows if len(side) == 1 else side for side in (left, right)), strict=True))


def _pair(row: Sequence[tuple[float, float]], measured: bool) -> Paired:
    if measured and all(left > 0 and right > 0 for left, right in row):
        return Paired("ratio", ratio_spread([left / right for left, right in row]))
    return Paired("difference", spread([left - right for left, right in row]))


def _by_interval(outcomes: Mapping[int, Outcome], rows: Sequence[Paired]) -> Verdict:
    if not rows:
        return "undecided"
    sign = next(iter(outcomes.values())).steps[0].sign
    ends = [row.at_ends(sign) for row in rows]
    if {False} in ends:
        return "fails"
    return "holds" if all(end == {True} for end in ends) else "undecided"


def _by_agreement(answers: Sequence[bool]) -> Verdict:
    return _said(answers[0]) if len(set(answers)) == 1 else "undecided"


def _said(answer: bool) -> Verdict:
    return "holds" if answer else "fails"


def _interval(row: Paired) -> str:
    mean, low, high = (f"{number or 0.0:,.3g}" for number in (row.over.mean, row.over.low, row.over.high))
    return f"paired {row.kind} {mean}, 95 % interval {low} to {high}"
