"""What each table and figure means, in words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import yaml

from oaem.errors import UserError


@cache
def _captions() -> dict[str, dict[str, str]]:
    return yaml.safe_load((files("oaem.presentation") / "captions.yaml").read_text(encoding="utf-8"))


def names() -> list[str]:
    """All tables and figures that have a caption."""
    return list(_captions())


def title(name: str, model: str = "") -> str:
    """The title, without the table's number; UserError if there is no such table or figure.

    A table about one model of the grid calls it by `model`, or by its place where the grid has none there.
    """
    entry = _entry(name)
    return entry["title"].format(model=model or entry.get("model", ""))


def text(name: str) -> str:
    """What the table or figure shows; UserError if there is no such table or figure."""
    return _entry(name)["text"].strip()


def heading(name: str, model: str = "") -> str:
    """The title with the table's number."""
    number = name.removeprefix("table")
    return f"Table {number}. {title(name, model)}" if number.isdigit() else title(name, model)


def rst(name: str, model: str = "", notes: Sequence[str] = ()) -> str:
    """The caption for Snakemake's report, with `notes` about the grid's models at its end."""
    return " ".join([f"**{heading(name, model)}.**", text(name), *(f"{note}." for note in notes)]) + "\n"


def _entry(name: str) -> dict[str, str]:
    if name not in _captions():
        raise UserError(f"{name!r} is no table or figure; expected one of {', '.join(_captions())}.")
    return _captions()[name]
