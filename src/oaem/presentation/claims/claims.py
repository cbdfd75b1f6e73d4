"""The paper's statements, each decided on the paper's own numbers and on ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from oaem.config.schema import Config
from oaem.errors import UserError
from oaem.presentation.claims import reported
from oaem.presentation.claims.expressions import evaluate
from oaem.presentation.claims.seeds import Judgement, Verdict, judge
from oaem.presentation.claims.values import NamedColumn, Undecided
from oaem.presentation.tables.build import Measurements, fill
from oaem.presentation.view import View, other_budgets

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("init", "beam", "epochs", "model", "rate", "benchmark", "domain", "quantity", "stage", "geometry")
COLUMNS = [
    *("id", "section", "scope", "statement", "paper", "paper_in_words", "paper_evidence"),
    *("ours", "rule", "seeds", "ours_in_words", "ours_evidence", "expression"),
]
ABOUT_THE_PAPER = "about models, search points or numbers of the paper that this grid does not have"
NOT_THE_BUDGETS = "no verdict, since this grid's budgets are not the paper's"


class Claim(BaseModel):
    """One row of paper/claims.yaml.

    `scope` "any": the statement makes sense in every grid, with the models, domains and search points that stand where
    the paper has its own. "paper": it speaks of a model, a search point or a number of the paper. `budgets` "paper": it
    is about a size or a time, which depends on the budgets of quantisation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    section: str
    statement: str
    expression: str
    scope: Literal["any", "paper"]
    budgets: Literal["any", "paper"] = "any"
    tolerance: float = 0.0

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not re.fullmatch(r"[a-z0-9-]+", self.id):
            raise ValueError("id: lower-case letters, digits and hyphens only")
        return self


def load(paper_dir: Path | str) -> list[Claim]:
    """The claims of paper/claims.yaml in its order; UserError if one is malformed or an id occurs twice."""
    path = Path(paper_dir) / "claims.yaml"
    try:
        claims = [Claim.model_validate(entry) for entry in reported.load_yaml(path)]
    except (ValidationError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None
    ids = [claim.id for claim in claims]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise UserError(f"{path}: these ids occur more than once: {', '.join(twice)}.")
    return claims


Row = tuple[Mapping[str, Any], Mapping[str, Any]]


@dataclass
class TableCells:
    """Cells of tables given as rows of (labels, column -> number, or the reason why there is none)."""

    tables: Callable[[str], list[Row]]

    def column(self, table: str, column: str, labels: Mapping[str, Any], schedule: str, by: str) -> tuple[float, ...]:
        """The numbers of a column in the rows with these labels; see `expressions`."""
        rows = self.tables(table)
        if schedule not in ("", "full"):
            raise UserError(f"claims: schedule={schedule!r} is unknown; expected 'full'.")
        limits = [row["epochs"] for row, _ in rows if row.get("epochs") is not None]
        chosen = []
        for row, values in rows:
            if not set(labels) <= set(row):
                raise Undecided(f"{table} has no label {', '.join(sorted(set(labels) - set(row)))} in this grid")
            if all(row[key] == wanted for key, wanted in labels.items()) and (
                not schedule or row.get("epochs") == max(limits)
            ):
                chosen.append((row, values))
        if by:
            chosen.sort(key=lambda pair: self._number(table, pair, by))
        names = _names([row for row, _ in chosen])
        return NamedColumn((self._number(table, pair, column) for pair in chosen), names)

    def _number(self, table: str, pair: Row, column: str) -> float:
        row, values = pair
        if column in row:
            return row[column]
        if column not in values:
            raise UserError(f"claims: {table} has no column {column!r}; it has {', '.join(values)}.")
        name = ", ".join(f"{key}={label}" for key, label in row.items() if label is not None)
        value = values[column]
        if not isinstance(value, (int, float)):
            raise Undecided(f"{table} [{name}] {column}: {value}")
        return value


def _names(rows: list[Mapping[str, Any]]) -> list[str]:
    """What tells rows apart, in the tables' words: `b=8, e=100` or `2 bpp`."""
    keys = [key for key in (rows[0] if rows else ()) if len({row[key] for row in rows}) > 1]
    shown = {"beam": "b=", "epochs": "e="}
    return [", ".join(f"{shown.get(key, '')}{row[key]}" for key in keys if row[key] is not None) for row in rows]


def paper_cells(paper_dir: Path | str) -> TableCells:
    """The paper's own numbers."""

    def rows(table: str) -> list[Row]:
        if not (Path(paper_dir) / "tables" / f"{table}.csv").exists():
            raise Undecided(f"the paper has no table {table}")
        return [_reported_row(row) for row in reported.rows(paper_dir, table)]

    return TableCells(lru_cache(maxsize=None)(rows))


def _reported_row(row: Mapping[str, str]) -> Row:
    labels: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for key, text in row.items():
        if key in ("beam", "epochs"):
            labels[key] = int(text) if text else None
        elif key in LABELS:
            labels[key] = text
        else:
            number = reported.number(text)
            values[key.removesuffix("_h")] = "lost from the paper's text" if number is None else number
    return labels, values


def our_cells(measurements: Measurements, config: Config, paper_dir: Path | str, seed: int | None = None) -> TableCells:
    """The numbers of this grid: means over seeds, or those of one seed."""

    def rows(table: str) -> list[Row]:
        filled = fill(table, measurements, config, paper_dir, seed)
        return [
            (labels, {key: value.missing if value.ours is None else value.ours for key, value in values.items()})
            for labels, values in filled.rows()
        ]

    return TableCells(lru_cache(maxsize=None)(rows))


def decide(claim: Claim, cells: TableCells) -> tuple[Verdict, str]:
    """Verdict and the numbers it rests on, or the reason why there is none."""
    try:
        outcome = evaluate(claim.expression, cells, claim.tolerance)
    except Undecided as reason:
        return "undecided", str(reason)
    return ("holds" if outcome.holds else "fails"), "; ".join(outcome.evidence)


def build(metrics: pd.DataFrame, config: Config, paper_dir: Path | str) -> pd.DataFrame:
    """claims.csv: for each claim the verdict on the paper's numbers and on ours, with what it rests on."""
    import pandas as pd

    theirs = paper_cells(paper_dir)
    measurements = Measurements(metrics)
    seeds = sorted({run.seed for run in config.runs()})
    ours = {seed: our_cells(measurements, config, paper_dir, seed) for seed in seeds}
    is_paper, budgets = View(config).is_paper, not other_budgets(config.quantization)
    records = []
    for claim in load(paper_dir):
        paper = judge(claim.expression, claim.tolerance, {0: theirs})
        own = Judgement("undecided", ABOUT_THE_PAPER, ABOUT_THE_PAPER)
        if is_paper or claim.scope == "any":
            own = judge(claim.expression, claim.tolerance, ours)
        if own.verdict != "undecided" and claim.budgets == "paper" and not budgets:
            words = f"{own.words} ({NOT_THE_BUDGETS})"
            own = replace(own, verdict="shown", words=words, evidence=f"{own.evidence} ({NOT_THE_BUDGETS})")
        head = (claim.id, claim.section, claim.scope, claim.statement, paper.verdict, paper.words, paper.evidence)
        records.append((*head, own.verdict, own.rule, own.seeds, own.words, own.evidence, claim.expression))
    return pd.DataFrame(records, columns=COLUMNS)
