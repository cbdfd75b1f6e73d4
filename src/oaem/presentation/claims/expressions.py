"""The language of claims: comparisons and arithmetic over table cells, parsed with `ast` and never evaluated by Python.

Values are numbers, truth values, and columns (tuples of numbers). Arithmetic and comparisons between columns go element
by element, and a number stands beside every element. Known names: `tol`, the claim's tolerance. Known functions:

    cell(table, column=..., LABEL=...)       one number; the labels must leave exactly one row
    column(table, column, LABEL=..., schedule="full", by=...)
                                             the numbers of a column in the table's order, or sorted by another column
                                             or label; "full" keeps the rows with the table's largest epoch limit
    row(table, columns..., LABEL=...)        several columns of one row
    min max sum mean abs len all any count   as usual; count counts the true elements
    log10(x)  increasing(c)  decreasing(c)   increasing and decreasing are strict
    dominated(x, y, x_by, y_by)              is each point (x, y) dominated by one of (x_by, y_by)? less is better
    beats(x, y, x_by, y_by)                  is every point's y below that of each (x_by, y_by) with x <= x_by
    column[i]                                an element; i may be negative
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Protocol

from oaem.errors import UserError

MAX_LENGTH = 1000


class Undecided(Exception):  # noqa: N818  it is a verdict rather than an error
    """The expression needs a number that is not there; the message says which and why."""


class Cells(Protocol):
    """Where an expression finds its numbers; every method raises `Undecided` for a cell that is not there."""

    def column(self, table: str, column: str, labels: Mapping[str, Any], schedule: str, by: str) -> tuple[float, ...]:
        """The numbers of a column in the rows with these labels."""


_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


_SIGNS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_SHOWN = ("dominated", "beats", "increasing", "decreasing")


def evaluate(expression: str, cells: Cells, tolerance: float = 0.0) -> tuple[bool, list[str]]:
    """Whether the expression holds, and the comparisons that decided it, with their numbers.

    Raises Undecided if a number is missing, UserError if the expression is not of this language.
    """
    if len(expression) > MAX_LENGTH:
        raise UserError(f"claim expression: longer than {MAX_LENGTH} characters; split the claim.")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise UserError(f"claim expression {expression!r}: {error}") from None
    evaluator = _Evaluator(expression, cells, tolerance)
    result = evaluator.visit(tree.body)
    if not isinstance(result, bool):
        raise UserError(f"claim expression {expression!r}: it ends in {result!r}, expected a truth value.")
    return result, evaluator.evidence


class _Evaluator:
    def __init__(self, expression: str, cells: Cells, tolerance: float) -> None:
        self.expression, self.cells, self.tolerance = expression, cells, tolerance
        self.evidence: list[str] = []

    def refuse(self, node: ast.AST, what: str) -> UserError:
        where = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
        return UserError(f"claim expression {self.expression!r}: {where}: {what}.")

    def visit(self, node: ast.expr) -> Any:
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise self.refuse(node, "not part of the language of claims")
        return method(node)

    def _constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, (bool, int, float, str)):
            return node.value
        raise self.refuse(node, "expected a number, a truth value or a name in quotes")

    def _name(self, node: ast.Name) -> float:
        if node.id == "tol":
            return self.tolerance
        raise self.refuse(node, "unknown name; only tol is known")

    def _boolop(self, node: ast.BoolOp) -> bool:
        parts = (self._truth(value) for value in node.values)
        return all(parts) if isinstance(node.op, ast.And) else any(parts)

    def _truth(self, node: ast.expr) -> bool:
        value = self.visit(node)
        if not isinstance(value, bool):
            raise self.refuse(node, "expected a truth value; wrap a column in all() or any()")
        return value

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            return not self._truth(node.operand)
        if isinstance(node.op, ast.USub):
            return self._apply(node, operator.mul, -1, self.visit(node.operand))
        raise self.refuse(node, "only not and - may stand before a value")

    def _binop(self, node: ast.BinOp) -> Any:
        if type(node.op) not in _BINARY:
            raise self.refuse(node, "only + - * / are known")
        return self._apply(node, _BINARY[type(node.op)], self.visit(node.left), self.visit(node.right))

    def _compare(self, node: ast.Compare) -> Any:
        values = [self.visit(value) for value in (node.left, *node.comparators)]
        results = []
        for sign, (left, right) in zip(node.ops, pairwise(values), strict=True):
            if type(sign) not in _BINARY:
                raise self.refuse(node, "only < <= > >= == != compare")
            result = self._apply(node, _BINARY[type(sign)], left, right)
            self.evidence.append(
                f"{_shown(left)} {_SIGNS[type(sign)]} {_shown(right)}{': no' if result is False else ''}"
            )
            results.append(result)
        if len(results) > 1 and not all(isinstance(result, bool) for result in results):
            raise self.refuse(node, "a chain of comparisons works on numbers only")
        return results[0] if len(results) == 1 else all(results)

    def _subscript(self, node: ast.Subscript) -> float:
        values, index = self.visit(node.value), self.visit(node.slice)
        if not isinstance(values, tuple) or type(index) is not int:
            raise self.refuse(node, "expected a column and a whole number")
        if not -len(values) <= index < len(values):
            raise Undecided(f"the statement compares more rows than the {len(values)} there are")
        return values[index]

    def _call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        keywords = {keyword.arg: self.visit(keyword.value) for keyword in node.keywords if keyword.arg}
        if len(keywords) != len(node.keywords):
            raise self.refuse(node, "** is not part of the language")
        values = [self.visit(value) for value in node.args]
        if name in ("cell", "column", "row"):
            return self._lookup(node, name, values, keywords)
        if name not in FUNCTIONS or keywords:
            raise self.refuse(node, f"unknown function; known are cell, column, row, {', '.join(sorted(FUNCTIONS))}")
        try:
            result = FUNCTIONS[name](*values)
        except (TypeError, ValueError) as error:
            raise self.refuse(node, str(error)) from None
        if name in _SHOWN:
            self.evidence.append(f"{name}({'; '.join(map(_shown, values))}) is {_shown(result)}")
        return result

    def _lookup(self, node: ast.Call, name: str, values: list[Any], labels: dict[str, Any]) -> Any:
        if name == "row":
            table, *columns = values
            return tuple(self._one(node, table, column, labels) for column in columns)
        if name == "cell":
            if len(values) != 1:
                raise self.refuse(node, "expected a table, column=... and labels")
            return self._one(node, values[0], labels.pop("column", None), labels)
        schedule, by = labels.pop("schedule", ""), labels.pop("by", "")
        if len(values) != 2:
            raise self.refuse(node, "expected a table and a column")
        return self.cells.column(values[0], values[1], labels, schedule, by)

    def _one(self, node: ast.Call, table: str, column: str | None, labels: Mapping[str, Any]) -> float:
        if column is None:
            raise self.refuse(node, "expected column=...")
        found = self.cells.column(table, column, labels, "", "")
        if len(found) != 1:
            raise Undecided(f"{table} has {len(found)} rows with {dict(labels)}, the statement is about one")
        return found[0]

    def _apply(self, node: ast.expr, function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        try:
            return broadcast(function, left, right)
        except ZeroDivisionError:
            raise Undecided("division by zero") from None
        except (TypeError, ValueError) as error:
            raise self.refuse(node, str(error)) from None


def four_digits(value: float) -> str:
    """`value` in four digits, with commas and without an exponent as long as it can be read: 65,410 and 0.0123."""
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if 1e4 <= abs(rounded) < 1e9 else f"{value:.4g}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return four_digits(value) if isinstance(value, float) else str(value)


def broadcast(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Apply to two numbers, or element by element where one or both are columns."""
    if not isinstance(left, tuple) and not isinstance(right, tuple):
        return function(left, right)
    length = len(left if isinstance(left, tuple) else right)
    left = left if isinstance(left, tuple) else (left,) * length
    right = right if isinstance(right, tuple) else (right,) * length
    return tuple(function(*pair) for pair in zip(left, right, strict=True))


def _extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    """`min` or `max` over a column or over several values; of nothing it is undecided."""

    def apply(*values: Any) -> Any:
        elements = values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
        if not elements:
            raise Undecided("no row to compare")
        return function(elements)

    return apply


def _over_truths(function: Callable[..., Any]) -> Callable[..., Any]:
    """`all`, `any` or `count` over a column of truth values; of nothing it is undecided, not vacuously true."""

    def apply(values: Any) -> Any:
        if not isinstance(values, tuple) or not all(isinstance(value, bool) for value in values):
            raise TypeError("expected a column of truth values")
        if not values:
            raise Undecided("no row to compare")
        return function(values)

    return apply


def _ordered(compare: Callable[[float, float], bool]) -> Callable[[tuple[float, ...]], bool]:
    def apply(values: tuple[float, ...]) -> bool:
        if len(values) < 2:
            raise Undecided("fewer than two rows to compare")
        return all(compare(*pair) for pair in pairwise(values))

    return apply


def _dominated(x: Any, y: Any, x_by: Any, y_by: Any) -> tuple[bool, ...]:
    others = list(zip(x_by, y_by, strict=True))
    return tuple(any(dominates(other, point) for other in others) for point in zip(x, y, strict=True))


def dominates(better: tuple[float, float], worse: tuple[float, float]) -> bool:
    """Whether a point is no worse in both coordinates and better in one, less being better."""
    return better != worse and better[0] <= worse[0] and better[1] <= worse[1]


def _beats(x: Any, y: Any, x_by: Any, y_by: Any) -> bool:
    others = list(zip(x_by, y_by, strict=True))
    return all(value < rival for cost, value in zip(x, y, strict=True) for at, rival in others if cost <= at)


def _mean(values: tuple[float, ...]) -> float:
    if not values:
        raise Undecided("no row to average")
    return math.fsum(values) / len(values)


def _abs(value: Any) -> Any:
    return tuple(abs(element) for element in value) if isinstance(value, tuple) else abs(value)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": _extreme(min),
    "max": _extreme(max),
    "all": _over_truths(all),
    "any": _over_truths(any),
    "count": _over_truths(sum),
    "sum": math.fsum,
    "mean": _mean,
    "abs": _abs,
    "len": len,
    "log10": math.log10,
    "increasing": _ordered(operator.lt),
    "decreasing": _ordered(operator.gt),
    "dominated": _dominated,
    "beats": _beats,
}
