"""YAML files of a configuration, one or several of which each amends those before it, as Snakemake takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from oaem.errors import UserError


def read(path: Path | str) -> dict[str, Any]:
    """The keys in the YAML file `path`; UserError if it is missing or holds no mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys at the top, found {type(values).__name__}.")
    return values


def amended(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the keys of `more`: mappings are merged at any depth, anything else is replaced, lists too."""
    both: dict[str, Any] = dict(values)
    for key, value in more.items():
        before = both.get(key)
        inner = before if isinstance(before, Mapping) else {}
        both[key] = amended(inner, value) if isinstance(value, Mapping) else value
    return both
