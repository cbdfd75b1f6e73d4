"""The language of claims: comparisons and arithmetic over table cells, parsed with `ast` and never evaluated by Python.

Values are numbers, truth values, and columns (tuples of numbers). Arithmetic and comparisons between columns go element
by element, and a number stands beside every element. Known names: `tol`, the claim's tolerance. Known functions:

    cell(table, column=..., LABEL=...)       one number; the labels must leave exactly one row
    column(table, column, LABEL=..., schedule="full", by=...)
                                             the numbers of a column in the table's order, or sorted by another column
                                             or label; "full" keeps the rows with the table's largest epoch limit
    row(table, columns..., LABEL=...)        several columns of one row
    min max sum mean abs len all any count   as usual; count counts the true elements
    several(c)                               the column, if it has more than one element; otherwise undecided
    log10(x)  increasing(c)  decreasing(c)   increasing and decreasing are strict
    dominated(x, y, x_by, y_by)              is each point (x, y) dominated by one of (x_by, y_by)? less is better
    beats(x, y, x_by, y_by)                  is every point's y below that of each (x_by, y_by) with x <= x_by
    column[i]                                an element; i may be negative
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from oaem.errors import UserError
from oaem.presentation.claims.values import FUNCTIONS, Undecided, broadcast, four_digits

MAX_LENGTH = 1000


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


SIGNS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_SHOWN = ("dominated", "beats", "increasing", "decreasing")


@dataclass(frozen=True)
class Step:
    """A comparison, or a function that compares, with the numbers it was made with.

    `sign` is the comparison's, or the function's name; `operands` are numbers or columns and belong to `nodes`.
    """

    sign: str
    nodes: tuple[ast.expr, ...]
    operands: tuple[Any, ...]
    result: Any


class Outcome(NamedTuple):
    """Whether an expression holds, the comparisons that decided it as text with their numbers, and as steps."""

    holds: bool
    evidence: list[str]
    steps: list[Step]


def parse(expression: str) -> ast.expr:
    """The expression as a tree, not yet known to be of this language; UserError if it is no expression at all."""
    if len(expression) > MAX_LENGTH:
        raise UserError(f"claim expression: longer than {MAX_LENGTH} characters; split the claim.")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise UserError(f"claim expression {expression!r}: {error}") from None


def evaluate(expression: str, cells: Cells, tolerance: float = 0.0) -> Outcome:
    """Whether the expression holds, and what decided it.

    Raises Undecided if a number is missing, UserError if the expression is not of this language.
    """
    evaluator = _Evaluator(expression, cells, tolerance)
    result = evaluator.visit(parse(expression))
    if not isinstance(result, bool):
        raise UserError(f"claim expression {expression!r}: it ends in {result!r}, expected a truth value.")
    return Outcome(result, evaluator.evidence, evaluator.steps)


class _Evaluator:
    def __init__(self, expression: str, cells: Cells, tolerance: float) -> None:
        self.expression, self.cells, self.tolerance = expression, cells, tolerance
        self.evidence: list[str] = []
        self.steps: list[Step] = []

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
        sides = pairwise((node.left, *node.comparators))
        for sign, nodes, (left, right) in zip(node.ops, sides, pairwise(values), strict=True):
            if type(sign) not in _BINARY:
                raise self.refuse(node, "only < <= > >= == != compare")
            result = self._apply(node, _BINARY[type(sign)], left, right)
            no = ": no" if result is False else ""
            self.evidence.append(f"{_shown(left)} {SIGNS[type(sign)]} {_shown(right)}{no}")
            self.steps.append(Step(SIGNS[type(sign)], nodes, (left, right), result))
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
        before = len(self.steps)
        values = [self.visit(value) for value in node.args]
        if name == "count":  # what is compared is the number of rows
            del self.steps[before:]
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
            self.steps.append(Step(name, tuple(node.args), tuple(values), result))
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


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return four_digits(value) if isinstance(value, float) else str(value)
