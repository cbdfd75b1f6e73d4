"""Pages of docs/ whose numbers come from archived measurements: their template, and how they print a mean."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

DATE = "-????-??-??*"  # how the name of an archive ends, as a pattern of file names: 2026-11-29, then 2026-11-29b
TEXTS = {"wikihow": "WikiHow (in-domain)", "lambada": "LAMBADA (near)", "boolq": "Wikipedia (far)"}
STAGES = {"pre_pv": "before PV", "post_pv": "after PV"}
INITS = {"greedy": "greedy", "oaem": "OA-EM"}


def rendered(template: Path, **values: object) -> str:
    """The Markdown that `template` makes of `values`; a name that it does not know is an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def mean_and_deviation(values: Sequence[float], digits: int | None = None) -> str:
    """Mean and sample standard deviation, one value a seed; a single one has no deviation.

    digits: decimals; without them those of perplexities, fewer from 100 on.
    """
    if digits is None:
        digits = 1 if statistics.fmean(values) >= 100 else 2
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"
