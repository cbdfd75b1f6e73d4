"""The page's section "Across models": greedy and OA-EM at one geometry with several models; does rho tell them apart?

Made of what the archives' folders hold, by the kind of archive that their names say. What none of them holds is "not
run"; a folder that comes later fills it in.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from oaem.config.geometry import Geometry
from oaem.presentation.archived import (
    ARCHIVE,
    RUN,
    archived,
    joined_or_empty,
    layer_pairs,
    lower_layers,
    paths,
    where,
)
from oaem.presentation.pages import DATE, INITS, STAGES, TEXTS, mean_and_deviation
from oaem.presentation.pairs import Pairs, mean_accuracy, over_seeds
from oaem.presentation.spread import ratio_spread
from oaem.presentation.tables.build import NOT_RUN
from oaem.presentation.trend import Ratios, Tally, Trend

if TYPE_CHECKING:
    import pandas as pd

GEOMETRY = "2bpp-2x8g8"
MODELS = {
    "smollm2-135m": "SmolLM2 135M",
    "gemma-3-270m": "Gemma 3 270M",
    "qwen2.5-coder-0.5b": "Qwen2.5-Coder 0.5B",
    "qwen2.5-coder-1.5b": "Qwen2.5-Coder 1.5B",
}
"""What the page calls them, from the smallest upwards; everywhere else on it there is only the first."""
FAR = ("pre_pv", "boolq")
LAYER, ERROR = [*RUN, "block", "linear"], "relative_error"


@dataclass(frozen=True)
class Budgets:
    """Runs with the same settings: their search point, the models that a configuration has, and kinds of archives.

    archives: patterns of folders. Of what several kinds hold the first one's stands; of one kind, the newest folder's.
    """

    name: str
    archives: tuple[str, ...]
    search: tuple[int, int]
    models: tuple[str, ...]
    geometry: str = GEOMETRY


# The evidence made again is here for what the evidence has not: one folder has its tasks, another its layers' errors.
MADE_AGAIN = ("ablation-nothing-2026-11-29", f"ablation-nothing{DATE}")
BUDGETS = (
    Budgets("paper", (f"evidence{DATE}", f"three-models{DATE}", *MADE_AGAIN), (8, 100), tuple(MODELS)),
    Budgets("demonstration", (f"families{DATE}",), (4, 2), tuple(MODELS)[:3]),
)
AT_THREE = Budgets("paper", (f"three-models{DATE}",), (8, 100), tuple(MODELS)[1:], "3bpp-3x8g8")


class Measured(Pairs):
    """The pairs of runs with one set of budgets, by model, and what else was measured of them."""

    def __init__(self, budgets: Budgets, archives: Path) -> None:
        folders = [sorted(archives.glob(pattern)) for pattern in budgets.archives]
        kinds = [archived(each, budgets.geometry, budgets.search) for each in folders]
        metrics = joined_or_empty([kind.metrics for kind in kinds])
        super().__init__({MODELS[model]: where(metrics, model=model) for model in budgets.models})
        self.name = budgets.name
        self.unquantised = _by_label(
            joined_or_empty([rows for kind in kinds for rows in _newest_first(kind.unquantised)])
        )
        self.directions = _by_label(_first([kind.directions for kind in kinds]))

    def folders(self, label: str) -> list[str]:
        """The names of the archives that hold a model's runs."""
        tables = (self.runs[label], where(self.directions, label=label))
        return sorted({name for rows in tables if len(rows) for name in rows[ARCHIVE]})

    def places(self, label: str) -> str:
        """The same, as the page names them."""
        return paths(self.folders(label))

    def original(self, label: str, text: str) -> str:
        """Perplexity of the unquantised model, on the same text."""
        found = where(self.unquantised, label=label, metric="perplexity", dataset=text)
        return mean_and_deviation(list(found["value"])) if len(found) else NOT_RUN

    def error_ratios(self, label: str) -> Ratios:
        """Greedy over OA-EM of layer errors on the unquantised model's inputs: geometric mean of the layers by seed."""
        pairs = self._layers(label)
        logs = (pairs["greedy"] / pairs["oaem"]).map(math.log).groupby("seed").mean()
        return {int(seed): math.exp(value) for seed, value in zip(logs.index, logs, strict=True)}

    def error_ratio(self, label: str) -> str:
        """The same over seeds, with its interval."""
        return over_seeds(self.error_ratios(label))

    def inquired(self, label: str) -> str:
        """The seeds that have it."""
        return ", ".join(map(str, self.error_ratios(label))) or NOT_RUN

    def lower(self, label: str) -> str:
        """In how many layers of all seeds that error is lower with OA-EM."""
        pairs = self._layers(label)
        return lower_layers(pairs) if len(pairs) else NOT_RUN

    def original_accuracy(self, label: str) -> str:
        """Mean accuracy of the unquantised model over the six tasks."""
        return mean_accuracy(where(self.unquantised, label=label))

    def trend(self, stage: str) -> Trend:
        """The models with pairs at a stage, from the smallest mean rho of their layers upwards."""
        return self._ordered(stage, {label: self._mean_rho(label) for label in self.shown(stage)})

    def from_end_to_end(self, stage: str, text: str) -> str:
        """The ratio with the model of the largest mean rho over that with the smallest one, paired by seed."""
        ratios = self.trend(stage).end_ratios(stage, text)
        return over_seeds(ratios) if ratios else "no seed in common"

    def by_errors(self) -> Trend:
        """The models whose layer errors on the model's inputs are known, from the smallest ratio of these upwards."""
        known = {label: self.error_ratios(label) for label in self.shown()}
        return self._ordered(
            "pre_pv", {label: ratio_spread(list(each.values())).mean for label, each in known.items() if each}
        )

    def same_by_rho(self) -> Trend:
        """The models of `by_errors`, from the smallest mean rho of their layers upwards."""
        return self._ordered("pre_pv", {rung.name: self._mean_rho(rung.name) for rung in self.by_errors().rungs})

    def _ordered(self, stage: str, places: dict[str, float]) -> Trend:
        rate = Geometry.parse(GEOMETRY).bits_per_parameter
        return Trend([self.rung(label, stage, rate) for label in sorted(places, key=lambda label: places[label])])

    def _layers(self, label: str) -> pd.DataFrame:
        rows = where(self.directions, label=label)
        return layer_pairs(rows, ERROR).reindex(columns=list(INITS)).dropna().astype(float)


class Compared:
    """What the section says of all models and budgets together."""

    def __init__(self, archives: Path) -> None:
        self.all = [Measured(budgets, archives) for budgets in BUDGETS]
        self.at_three = Measured(AT_THREE, archives)

    def labels(self) -> list[str]:
        """The models with any pair of runs."""
        return [label for label in MODELS.values() if self._found(label)]

    def others(self) -> str:
        """Those of them that the rest of the page does not have."""
        others = list(MODELS.values())[1:]
        return ", ".join(label for label in self.labels() if label in others)

    def archives(self) -> str:
        """The folders that the section is made of."""
        names = {
            name
            for measured in (*self.all, self.at_three)
            for label in measured.runs
            for name in measured.folders(label)
        }
        return paths(sorted(names))

    def absent(self) -> str:
        """Pairs that a configuration has and no archive."""
        found = []
        for measured in self.all:
            lacking = [label for label in measured.runs if label not in measured.shown()]
            found += [f"{', '.join(lacking)} ({measured.name})"] if lacking else []
        return ", ".join(found)

    def tally(self, label: str, *stages: str) -> Tally:
        """How often OA-EM wins with a model, at all stages if none is named.

        A comparison is a text at a stage with one set of budgets.
        """
        return Tally(self._found(label, stages or tuple(STAGES)))

    def winners(self, *stages: str) -> list[str]:
        """The models with which it wins every comparison, at all stages if none is named."""
        tallies = {label: self.tally(label, *stages) for label in self.labels()}
        return [label for label, tally in tallies.items() if tally.won == len(tally.found) > 0]

    def single(self) -> str:
        """The models that have no more than one seed with the paper's budgets."""
        return ", ".join(label for label in self.all[0].shown() if len(self.all[0].ratios(label, *FAR)) == 1)

    def trends(self) -> list[tuple[Measured, str]]:
        """The budgets and stages at which there are two models or more to compare by rho."""
        return [(each, stage) for each in self.all for stage in STAGES if len(each.shown(stage)) > 1]

    def ends(self) -> tuple[int, int]:
        """On how many of their texts the mean ratio is larger at the largest rho than at the smallest; of how many."""
        spreads = [measured.trend(stage).spreads(stage, text) for measured, stage in self.trends() for text in TEXTS]
        return sum(over[-1].mean > over[0].mean for over in spreads), len(spreads)

    def inquired(self) -> list[tuple[Measured, str]]:
        """The budgets and models whose layer errors on the unquantised model's inputs are known."""
        return [(each, label) for each in self.all for label in each.shown() if each.error_ratios(label)]

    def agreeing(self) -> tuple[int, int]:
        """With how many of these the ratio of errors and the far ratio lie on the same side of one, and of how many."""
        pairs = [(each.error_ratios(label), each.ratios(label, *FAR)) for each, label in self.inquired()]
        sides = [[ratio_spread(list(ratios.values())).mean > 1 for ratios in pair] for pair in pairs]
        return sum(errors == far for errors, far in sides), len(sides)

    def tasked(self) -> list[tuple[Measured, str]]:
        """The budgets and models with pairs of runs whose tasks were measured."""
        return [(each, label) for each in self.all for label in each.runs if each.tasked(label)]

    def standard_error(self) -> str:
        """The largest of a mean accuracy."""
        return f"{max(measured.standard_error(label) for measured, label in self.tasked()):.3f}"

    def near_accuracies(self) -> tuple[int, int]:
        """With how many of these greedy and OA-EM differ by less than the standard error of one; of how many."""
        near = 0
        for measured, label in self.tasked():
            greedy, oaem = (fmean(measured.paired_accuracies(label, init)) for init in INITS)
            near += abs(greedy - oaem) < measured.standard_error(label)
        return near, len(self.tasked())

    def _found(self, label: str, stages: Collection[str] = tuple(STAGES)) -> list[Ratios]:
        return [
            measured.ratios(label, stage, text)
            for measured in self.all
            for stage in stages
            if label in measured.shown(stage)
            for text in TEXTS
        ]


def _first(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The same for errors of layers, which no dataset and no metric names."""
    import pandas as pd

    rows = [table for table in tables if len(table)]
    return pd.concat(rows).drop_duplicates(LAYER) if rows else pd.DataFrame(columns=[*LAYER, ERROR, ARCHIVE])


def _newest_first(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """One table a folder."""
    return [each for _, each in rows.groupby(ARCHIVE)][::-1] if len(rows) else []


def _by_label(rows: pd.DataFrame) -> pd.DataFrame:
    """With what the page calls their model instead of what tables call their dataset."""
    return rows.assign(label=rows["model"].map(MODELS))
