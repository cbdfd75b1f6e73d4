"""Values of the language of claims: numbers, truth values and columns; and its functions over them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any


class Undecided(Exception):  # noqa: N818  it is a verdict rather than an error
    """The expression needs a number that is not there; the message says which and why."""


class NamedColumn(tuple[float, ...]):
    """A column that remembers what its rows are called; arithmetic with it keeps the names."""

    rows: tuple[str, ...]

    def __new__(cls, values: Iterable[float], rows: Iterable[str]) -> NamedColumn:
        """A column of these values, its rows called so."""
        column = super().__new__(cls, values)
        column.rows = tuple(rows)
        return column


def row_names(*values: Any) -> tuple[str, ...]:
    """What the rows of the first named column among values are called; empty if there is none."""
    return next((value.rows for value in values if isinstance(value, NamedColumn)), ())


def elements(value: Any) -> tuple[Any, ...]:
    """A column as it is, a number as a column of one."""
    return value if isinstance(value, tuple) else (value,)


def four_digits(value: float) -> str:
    """`value` in four digits, with commas and without an exponent as long as it can be read: 65,410 and 0.0123."""
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if 1e4 <= abs(rounded) < 1e9 else f"{value:.4g}"


def broadcast(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Apply to two numbers, or element by element where one or both are columns."""
    if not isinstance(left, tuple) and not isinstance(right, tuple):
        return function(left, right)
    values = (left, right)
    length = len(left if isinstance(left, tuple) else right)
    left = left if isinstance(left, tuple) else (left,) * length
    right = right if isinstance(right, tuple) else (right,) * length
    results = tuple(function(*pair) for pair in zip(left, right, strict=True))
    names = row_names(*values)
    return NamedColumn(results, names) if names else results


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


def _several(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) < 2:
        raise Undecided("fewer than two rows to compare")
    return values


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
    "several": _several,
    "log10": math.log10,
    "increasing": _ordered(operator.lt),
    "decreasing": _ordered(operator.gt),
    "dominated": _dominated,
    "beats": _beats,
}
