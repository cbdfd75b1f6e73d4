"""The report: one HTML file with claims, tables beside the paper's, figures, protocol and provenance."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from oaem.config.schema import Config
from oaem.presentation import captions
from oaem.presentation.claims import claims, reported
from oaem.presentation.figures.drawing import write_svg
from oaem.presentation.figures.figures import FIGURES
from oaem.presentation.figures.seeds import single
from oaem.presentation.headline import Group, first_subject, groups, summary
from oaem.presentation.opening import sentences, setting
from oaem.presentation.tables import markdown
from oaem.presentation.tables.build import EXTRA, TABLES, Measurements, Table, Value, fill
from oaem.presentation.tables.layouts import shown
from oaem.presentation.view import View, other_budgets

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["render", "summary"]
VERDICTS = get_args(claims.Verdict)


def render(
    metrics: pd.DataFrame, config: Config, paper_dir: Path | str, provenance: Mapping[str, Any] | None = None
) -> str:
    """The whole report as self-contained HTML; `provenance` adds lines such as the project's version.

    The same metrics, configuration and folder `paper/` give the same bytes.
    """
    measurements = Measurements(metrics)
    first = fill("headline", measurements, config, paper_dir)
    found = groups(first)
    decided = claims.build(metrics, config, paper_dir).astype(object).to_dict("records")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("oaem.presentation") / "report.html").read_text(encoding="utf-8"))
    return template.render(
        title=config.title,
        style=Markup((files("oaem.presentation") / "report.css").read_text(encoding="utf-8")),  # noqa: S704  our own file
        is_paper=View(config).is_paper,
        notes=View(config).notes(),
        verdicts=VERDICTS,
        runs=len(config.runs()),
        measured=len(metrics),
        headline=found,
        sentences=sentences(found),
        setting=setting(config),
        opening=_opening(found),
        many_seeds=first.many_seeds,
        digits=markdown.digits,
        extent=markdown.extent,
        other_budgets=bool(other_budgets(config.quantization)),
        opening_text=captions.text("seeds"),
        columns=first.columns,
        counts={side: {verdict: _count(decided, side, verdict) for verdict in VERDICTS} for side in ("paper", "ours")},
        claims=decided,
        slips=reported.load_yaml(Path(paper_dir) / "slips.yaml"),
        figures=[
            (
                name,
                captions.title(name),
                captions.text(name),
                _svg(name, FIGURES[name](metrics, config, paper_dir), captions.title(name)),
            )
            for name in shown(FIGURES, config)
            if name != "seeds"  # it opens the page
        ],
        tables=[
            _table(fill(name, measurements, config, paper_dir))
            for name in shown((*TABLES, *EXTRA), config)
            if name != "headline"
        ],
        protocol=_protocol(config),
        provenance=[*_archives(config), *_measured_on(metrics), *(provenance or {}).items()],
    )


def _count(decided: Iterable[Mapping[Any, Any]], side: str, verdict: str) -> int:
    return sum(row[side] == verdict for row in decided)


def _opening(found: list[Group]) -> list[Markup]:
    """The panels of the first figure, each by itself so that a narrow page sets them one below the other."""
    first = first_subject(found)
    return [
        _svg(f"seeds-{index}", single(group, first), f"{captions.title('seeds')}, {group.stage}")
        for index, group in enumerate(first)
    ]


def _svg(name: str, figure: Figure, title: str) -> Markup:
    """A figure as inline SVG, without the XML prologue, named for readers who cannot see it."""
    file = io.BytesIO()
    write_svg(figure, file)
    text = file.getvalue().decode()
    # Every figure numbers its clip paths and glyphs alone; in one page the names must not meet.
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text[text.index("<svg") :])
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1))  # noqa: S704


def _table(table: Table) -> dict[str, Any]:
    name = table.layout.name
    return {
        "name": name,
        "heading": captions.heading(name, table.layout.model),
        "subject": table.layout.subject,
        "text": captions.text(name),
        "labels": markdown.header(table)[: len(table.layout.labels)],
        "columns": [column.header for column in table.columns],
        "rows": [
            {
                "labels": ["" if label is None else label for label in labels.values()],
                "cells": [_cell(values[column.key], column) for column in table.columns],
            }
            for labels, values in table.rows()
        ],
        "missing": markdown.missing(table),
        "reasons": list(
            dict.fromkeys(value.missing for values in table.values for value in values.values() if value.missing)
        ),
        "empty": all(value.ours is None for values in table.values for value in values.values()),
    }


def _cell(value: Value, column: Any) -> dict[str, str]:
    difference = "" if value.difference is None else f"{value.difference:+.{column.decimals}f}"
    return {
        "ours": "" if value.ours is None else markdown.digits(value.ours, column),
        "extent": "" if value.ours is None else markdown.extent(value, column),
        "missing": markdown.short_reason(value.missing) if value.ours is None else "",
        "paper": "" if value.paper is None else markdown.digits(value.paper, column),
        "difference": difference,
    }


def _protocol(config: Config) -> list[tuple[str, str]]:
    """How this grid measures, in a few lines."""
    quantization, pv, downstream = config.quantization, config.pv, config.evaluation.downstream
    calibration = quantization.calibration
    lines = [
        (
            "Calibration",
            f"{calibration.windows or 'all'} windows of {calibration.window} tokens from {calibration.corpus}",
        )
    ]
    for key, domain in config.evaluation.perplexity.items():
        text = domain.text
        size = f", {text.windows} windows" if text.windows else ""
        lines.append(
            (
                f"Perplexity, {domain.role.replace('_', '-')}",
                f"{domain.label} ({key}): {text.window} tokens{size}, {text.protocol}",
            )
        )
    budgets = other_budgets(quantization)
    lines.append(("Budgets that are not the paper's", ", ".join(budgets) if budgets else "none"))
    tuning = quantization.block_tuning.epochs
    lines.append(("Block tuning", f"{tuning} epochs a group" if tuning else "off"))
    if pv is not None and pv.enabled:
        choice = f"checkpoint by {pv.test} test perplexity (the paper's way)"
        lines.append(("PV-tuning", f"{pv.epochs} epochs, {pv.batch_size} sequences a step; {choice}"))
    else:
        lines.append(("PV-tuning", "off: every number is of the model as it leaves the search"))
    items = f"{downstream.limit} items a task (seed {downstream.sample_seed})" if downstream.limit else "all items"
    lines.append(("Downstream", f"{', '.join(downstream.tasks)}; {items}" if downstream.tasks else "none"))
    seeds = sorted({run.seed for run in config.runs()})
    lines.append(
        (
            "Seeds",
            ", ".join(map(str, seeds))
            + (
                " (mean ± sample standard deviation; ratios: mean of logarithms [95 % t interval], paired by seed)"
                if len(seeds) > 1
                else ""
            ),
        )
    )
    return lines


def _archives(config: Config) -> list[tuple[str, str]]:
    """Where the measurements come from, unless they were made here."""
    return [("archives", ", ".join(config.from_archive))] if config.from_archive is not None else []


def _measured_on(metrics: pd.DataFrame) -> list[tuple[str, str]]:
    """What the protocols of the measurements say about machine and software, each value once."""
    found: dict[str, dict[str, None]] = {}
    for text in metrics["protocol"].dropna().unique():
        for key, value in _flat(json.loads(text)):
            if key.split(".")[0] in ("dtype", "device", "versions", "revision"):
                found.setdefault(key, {})[value] = None
    return [(key, ", ".join(values)) for key, values in sorted(found.items())]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(inner)
