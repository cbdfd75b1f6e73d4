"""The numbers that the paper reports, read from the folder `paper/`; lost cells are None."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from oaem.errors import UserError

Labels = Mapping[str, str | int | None]


@lru_cache(maxsize=64)
def _rows(path: Path) -> tuple[dict[str, str], ...]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return tuple(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path}: the paper's tables are needed here and cannot be read ({error.strerror}).") from None


def rows(paper_dir: Path | str, name: str) -> tuple[dict[str, str], ...]:
    """The rows of `tables/{name}.csv` as text, in the paper's order."""
    return _rows(Path(paper_dir) / "tables" / f"{name}.csv")


def settings(paper_dir: Path | str) -> tuple[dict[str, str], ...]:
    """Settings as the paper's text and its model card state them."""
    return _rows(Path(paper_dir) / "settings.csv")


def model_card(paper_dir: Path | str) -> tuple[dict[str, str], ...]:
    """Results as the model card states them."""
    return _rows(Path(paper_dir) / "model_card.csv")


def value(paper_dir: Path | str, name: str, labels: Labels, column: str) -> float | str | None:
    """What the paper reports in the row with these labels; None if the cell, the row or the table is not there."""
    if not (Path(paper_dir) / "tables" / f"{name}.csv").exists():
        return None
    wanted = {key: "" if label is None else str(label) for key, label in labels.items()}
    for row in rows(paper_dir, name):
        if all(row.get(key) == label for key, label in wanted.items()):
            text = row.get(column) or row.get(f"{column}_h") or ""
            return number(text)
    return None


def number(text: str) -> float | str | None:
    """The cell's number, its text if it is none, None if it is empty."""
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def load_yaml(path: Path | str) -> Any:
    """The value in a YAML file of the folder `paper/`."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from None
