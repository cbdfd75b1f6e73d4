"""What a run of the workflow found, in a few lines: greedy against OA-EM at every search point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oaem.config.geometry import Geometry
from oaem.config.schema import Config
from oaem.presentation.tables.build import Measurements, Table, Value, fill
from oaem.presentation.tables.cells import Number
from oaem.presentation.view import View, search_label

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Group:
    """One model, rate and search point at one stage: a line of numbers for each text."""

    model: str
    geometry: str
    point: str
    stage: str
    texts: tuple[tuple[str, str, dict[str, Value]], ...]

    @property
    def rate(self) -> str:
        """The nominal rate, as `2 bpp`."""
        return f"{Geometry.parse(self.geometry).bits_per_parameter:.4g} bpp"

    @property
    def subject(self) -> str:
        """Model, rate, geometry and search point."""
        return f"{self.model}, {self.rate} ({self.geometry}), {self.point}"

    @property
    def measured(self) -> bool:
        """Whether any run has a perplexity here."""
        return any(
            value.ours is not None for _, _, values in self.texts for key, value in values.items() if key != "fp16"
        )


def groups(table: Table) -> list[Group]:
    """The table `headline` gathered by model, rate, search point and stage, without groups that have no measurement."""
    gathered: dict[tuple[str, str, str, str], list[tuple[str, str, dict[str, Value]]]] = {}
    for labels, values in table.rows():
        point = search_label((int(labels["beam"] or 0), int(labels["epochs"] or 0)))
        where = (str(labels["model"]), str(labels["geometry"]), point, str(labels["stage"]))
        gathered.setdefault(where, []).append((str(labels["text"]), str(labels["role"]).replace("_", "-"), values))
    found = [Group(*where, tuple(texts)) for where, texts in gathered.items()]
    return [group for group in found if group.measured]


def summary(metrics: pd.DataFrame, config: Config, results: str = "results") -> str:
    """The headline as plain text for a terminal, and where tables, figures and report lie."""
    lines = [
        config.title,
        "=" * len(config.title),
        "",
        "Perplexity, lower is better; a ratio above 1 means OA-EM is better.",
    ]
    table = fill("headline", Measurements(metrics), config, "")
    found = groups(table)
    headers = "".join(f"{column.header:>13}" for column in table.columns)
    for group in found:
        lines += ["", f"{group.subject}, {group.stage}", f"  {'':<26}{headers}"]
        for text, role, values in group.texts:
            numbers = "".join(f"{_shown(values[column.key].ours):>13}" for column in table.columns)
            lines.append(f"  {f'{text} ({role})':<26}{numbers}")
    ratios = [values["ratio"].ours for group in found for _, _, values in group.texts]
    known = [ratio for ratio in ratios if isinstance(ratio, float)]
    if known:
        better = sum(ratio > 1 for ratio in known)
        seeds = len({run.seed for run in config.runs()})
        means = f" of means over {seeds} seeds" if seeds > 1 else ""
        lines += ["", f"OA-EM has the lower perplexity in {better} of {len(known)} comparisons{means}."]
    else:
        lines += ["", "No pair of greedy and OA-EM runs has a perplexity yet."]
    notes = [f"{note}." for note in View(config).notes()]
    lines += ["", *notes] if notes else []
    lines += ["", f"Tables:  {results}/tables", f"Figures: {results}/figures", f"Report:  {results}/report.html"]
    return "\n".join(lines) + "\n"


def _shown(value: Number | None) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else "not run"
