"""What each table and figure means, in words."""

from __future__ import annotations

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


def title(name: str) -> str:
    """The title, without the table's number; UserError if there is no such table or figure."""
    return _entry(name)["title"]


def text(name: str) -> str:
    """What the table or figure shows; UserError if there is no such table or figure."""
    return _entry(name)["text"].strip()


def heading(name: str) -> str:
    """The title with the table's number."""
    number = name.removeprefix("table")
    return f"Table {number}. {title(name)}" if number.isdigit() else title(name)


def rst(name: str) -> str:
    """The caption as workflow/report/NAME.rst holds it for Snakemake's report."""
    return f"**{heading(name)}.** {text(name)}\n"


def _entry(name: str) -> dict[str, str]:
    if name not in _captions():
        raise UserError(f"{name!r} is no table or figure; expected one of {', '.join(_captions())}.")
    return _captions()[name]
