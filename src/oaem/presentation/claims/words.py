"""What decided a statement, as a person reads it: "OA-EM 157 to 183, greedy 409 to 708"."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oaem.presentation.claims.expressions import SIGNS, Step
from oaem.presentation.claims.values import elements, four_digits, row_names

INITS = {"Greedy": "greedy", "Baseline": "greedy", "OA-EM": "OA-EM", "+ OA-EM": "OA-EM", "FP16": "unquantised"}
SUFFIXES = {"greedy": "greedy", "baseline": "greedy", "oaem": "OA-EM"}
STAGES = {"pre": "before PV", "post": "after PV"}
QUANTITIES = {
    "q_time": "quantisation time",
    "avg": "average accuracy",
    "gap": "gain by PV-tuning",
    "ratio": "greedy / OA-EM",
    "c4": "in-domain",
    "lambada_acc": "LAMBADA accuracy",
    "lambada_ppl": "LAMBADA perplexity",
}
# Which row an index picks, by what sorts the column; Table 4 begins with the first model's higher and lower rate.
PLACES = {
    "beam": {0: "narrowest beam", -1: "widest beam", -2: "second-widest beam"},
    "rho_max": {0: "smallest rho", -1: "largest rho"},
    "q_time": {0: "cheapest", -1: "dearest"},
    "table4": {0: "higher rate", 1: "lower rate"},
}
ORDERS = {"increasing": "rising", "decreasing": "falling"}
NOTHING = 1e-9
FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
CLAIMED = {"<": "below", "<=": "at most", ">": "above", ">=": "at least", "==": "equal to", "!=": "not"}


@dataclass(frozen=True)
class Subject:
    """What a side of a comparison is about: `head` names it, `context` says where, such as after PV-tuning."""

    head: str
    context: tuple[str, ...] = ()

    def told(self, known: Sequence[str] = ()) -> str:
        """The head, and in brackets what of the context is not known already."""
        own = [part for part in self.context if part not in known]
        return f"{self.head} ({', '.join(own)})" if own else self.head


def describe(seeds: Sequence[Sequence[Step]], intervals: Sequence[str] = ()) -> str:
    """The comparisons of one statement, made once a seed, with each side's range over seeds, row by row.

    `intervals` has a text for each row of a statement that is a single comparison.
    """
    kept: dict[tuple[str, ...], list[Step]] = {}
    for steps in seeds:
        for step in steps:
            key = (step.sign, *map(ast.unparse, step.nodes))
            # Whether a dominates b or b dominates a, the numbers are the same: they are told once.
            if key in kept or step.sign != "dominated" or not any(set(key) == set(other) for other in kept):
                kept.setdefault(key, []).append(step)
    return "; ".join(_compared(same, intervals) if same[0].sign in CLAIMED else _called(same) for same in kept.values())


def constant(node: ast.expr) -> bool:
    """Whether an expression has no measured number in it."""
    return not any(isinstance(inner, ast.Call) for inner in ast.walk(node))


def _compared(steps: list[Step], intervals: Sequence[str]) -> str:
    sign, order = steps[0].sign, (0, 1)
    if constant(steps[0].nodes[0]):
        sign, order = FLIPPED[sign], (1, 0)
    left, right = (subject(steps[0].nodes[side]) for side in order)
    fixed = constant(steps[0].nodes[order[1]])
    known = [part for part in left.context if fixed or part in right.context]
    names = row_names(*steps[0].operands)
    count = max(len(elements(operand)) for operand in steps[0].operands)
    parts = []
    for row in range(count):
        first, second = (_range([_element(step.operands[side], row) for step in steps]) for side in order)
        beside = f" (claimed: {CLAIMED[sign]} {second})" if fixed else f", {right.told(known)} {second}"
        told = f"{left.told(known)} {first}{beside}{_agreement([_element(step.result, row) for step in steps])}"
        told = f"{names[row]}: {told}" if count > 1 and names else told
        parts.append(f"{told} [{intervals[row]}]" if row < len(intervals) else told)
    return (f"{', '.join(known)}: " if known else "") + "; ".join(parts)


def _called(steps: list[Step]) -> str:
    """`dominated`, `beats`, `increasing` or `decreasing` with what it was given."""
    first = steps[0]
    told = []
    for index, node in enumerate(first.nodes):
        turned = -1 if isinstance(node, ast.UnaryOp) else 1
        rows = range(len(elements(first.operands[index])))
        ranges = [_range([turned * _element(step.operands[index], row) for step in steps]) for row in rows]
        about = subject(node)
        head = f"{about.head} perplexity" if about.head in SUFFIXES.values() else about.head
        told.append(f"{head} {', '.join(ranges)}")
    if first.sign not in ORDERS:
        return "; ".join(told)
    results = [all(elements(step.result)) for step in steps]
    return f"{'; '.join(told)} (claimed: {ORDERS[first.sign]}){_agreement(results)}"


def _agreement(results: Sequence[bool]) -> str:
    if all(results):
        return ""
    return " – not so" if not any(results) else f" – so with {sum(results)} of {len(results)} seeds"


def _element(value: Any, row: int) -> Any:
    values = elements(value)
    return values[row if len(values) > 1 else 0]


def _range(numbers: Sequence[float]) -> str:
    """The smallest and the largest over seeds; what rounding leaves of a zero is zero."""
    ends = (four_digits(0.0 if abs(end) < NOTHING else float(end)) for end in (min(numbers), max(numbers)))
    return " to ".join(dict.fromkeys(ends))


def subject(node: ast.expr) -> Subject:
    """What a part of an expression is about, in words."""
    if isinstance(node, ast.Subscript):
        return _picked(node)
    if isinstance(node, ast.Call):
        return _call(node)
    if isinstance(node, ast.UnaryOp):
        return subject(node.operand)
    if isinstance(node, ast.BinOp):
        return _combined(node)
    return Subject(ast.unparse(node))


def _combined(node: ast.BinOp) -> Subject:
    left, right = subject(node.left), subject(node.right)
    sign = {ast.Div: "/", ast.Sub: "−", ast.Add: "+", ast.Mult: "×"}[type(node.op)]
    if constant(node.left) or constant(node.right):
        return Subject(f"{left.head} {sign} {right.head}", left.context or right.context)
    known = tuple(part for part in left.context if part in right.context)
    return Subject(f"{left.told(known)} {sign} {right.told(known)}", known)


def _call(node: ast.Call) -> Subject:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name in ("cell", "column", "row"):
        return _cells(node)
    argument = node.args[0]
    if name == "count" and isinstance(argument, ast.Compare):
        sides = [subject(side).head for side in (argument.left, argument.comparators[0])]
        return Subject(f"number of times that {sides[0]} is {CLAIMED[SIGNS[type(argument.ops[0])]]} {sides[1]}:")
    if name == "abs" and isinstance(argument, ast.BinOp) and constant(argument.right):
        inner = subject(argument.left)
        return Subject(f"{inner.head} is off {ast.unparse(argument.right)} by", inner.context)
    inner = subject(argument)
    words = {"min": "lowest ", "max": "highest ", "mean": "mean "}.get(name, "")
    return Subject(words + inner.head, inner.context)


def _picked(node: ast.Subscript) -> Subject:
    inner = subject(node.value)
    call = node.value
    while isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "several":
        call = call.args[0]
    given = _given(call)
    place = PLACES.get(given.get("by", given["table"]), {}).get(ast.literal_eval(node.slice), "")
    return Subject(inner.head, (*inner.context, *([place] if place else [])))


def _given(node: ast.expr) -> dict[str, Any]:
    """Arguments of cell(), column() or row() by name."""
    if not isinstance(node, ast.Call):
        return {"table": ""}
    values = [ast.literal_eval(value) for value in node.args]
    given = {key.arg: ast.literal_eval(key.value) for key in node.keywords if key.arg}
    return {"table": values[0], "column": values[1] if len(values) > 1 else "", **given}


def _cells(node: ast.Call) -> Subject:
    given = _given(node)
    column = given["column"]
    stage, _, last = column.partition("_") if column.split("_")[0] in STAGES else ("", "", column)
    init = INITS.get(given.get("init", ""), "") or SUFFIXES.get(last, "")
    quantity = QUANTITIES.get(given.get("quantity", last), "")
    where = [str(given[key]) for key in ("domain", "model", "rate") if key in given]
    where += [f"b={given['beam']}"] if "beam" in given else []
    head = " ".join(part for part in (init, quantity) if part) or "perplexity"
    return Subject(head, (*([STAGES[stage]] if stage else []), *where))
