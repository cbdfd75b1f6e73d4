"""Pairs of runs, greedy and OA-EM of one seed, as pages quote them: every number as text, rounded the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from oaem.presentation.archived import where
from oaem.presentation.pages import INITS, TEXTS, mean_and_deviation
from oaem.presentation.spread import paired_ratios, ratio_spread, spread
from oaem.presentation.tables.build import NOT_RUN
from oaem.presentation.trend import Rung, interval
from oaem.presentation.view import TASK_METRICS

if TYPE_CHECKING:
    import pandas as pd


class Pairs:
    """Rows of metrics.csv by what the page calls their runs: one model, geometry and search point to a label."""

    def __init__(self, runs: Mapping[str, pd.DataFrame]) -> None:
        self.runs = runs
        # Asked for hundreds of times a page: found once.
        self._perplexities = {label: perplexities(rows) for label, rows in runs.items()}

    def by_seed(self, label: str, init: str, stage: str, text: str) -> dict[int, float]:
        """Perplexity by seed, empty where it was not run."""
        return self._perplexities[label].get((init, stage, text), {})

    def ratios(self, label: str, stage: str, text: str) -> dict[int, float]:
        """Greedy over OA-EM by seed."""
        return paired_ratios(*(self.by_seed(label, init, stage, text) for init in INITS))

    def measured(self, label: str, stage: str) -> bool:
        """Whether there are pairs of runs at a stage, on every text."""
        return all(self.ratios(label, stage, text) for text in TEXTS)

    def shown(self, stage: str = "pre_pv") -> list[str]:
        """What has pairs of runs at a stage."""
        return [label for label in self.runs if self.measured(label, stage)]

    def mean(self, label: str, init: str, stage: str, text: str) -> str:
        """Mean and sample standard deviation over the seeds that have a pair; one seed alone has no deviation."""
        seeds = self.ratios(label, stage, text)
        values = [value for seed, value in self.by_seed(label, init, stage, text).items() if seed in seeds]
        return mean_and_deviation(values) if values else NOT_RUN

    def ratio(self, label: str, stage: str, text: str) -> str:
        """The paired ratio with its interval."""
        return over_seeds(self.ratios(label, stage, text))

    def seeds(self, label: str, stage: str = "pre_pv") -> str:
        """The seeds of a case's pairs at a stage."""
        return ", ".join(map(str, self.ratios(label, stage, "boolq"))) or NOT_RUN

    def better(self, label: str, stage: str, text: str) -> str:
        """With how many seeds OA-EM has the lower perplexity."""
        ratios = self.ratios(label, stage, text).values()
        return f"{sum(ratio > 1 for ratio in ratios)} of {len(ratios)}"

    def across(self, first: str, second: str, init: str, stage: str, text: str) -> str:
        """Perplexity in one case over that in another, paired by the seeds of both."""
        return over_seeds(self._across(first, second, init, stage, text))

    def rho(self, label: str) -> str:
        """The smallest and the largest representational ratio of a layer."""
        values = self._rows(label, metric="rho")["value"]
        return " to ".join(f"{float(f'{end:.2g}'):g}" for end in (values.min(), values.max()))

    def error(self, label: str, init: str) -> str:
        """Mean relative output error of the layers."""
        return f"{self._error(label, init):.4f}"

    def bits(self, label: str) -> str:
        """Bits a quantised weight with codebooks and scales."""
        return f"{self._bits(label):.2f}"

    def rung(self, label: str, stage: str, code_bits: float) -> Rung:
        """A case as a trend compares it with others, by its ratios at one stage."""
        ratios = {(stage, text): self.ratios(label, stage, text) for text in TEXTS}
        errors = {init: self._error(label, init) for init in INITS}
        return Rung(label, code_bits, self._bits(label), errors, ratios, self._mean_rho(label))

    def accuracies(self, label: str, init: str) -> dict[int, float]:
        """Mean accuracy over the six tasks after PV-tuning, by seed."""
        rows = _accuracy_rows(self._rows(label, init=init, stage="post_pv"))
        by_seed = {int(seed): rows[rows["seed"] == seed] for seed in rows["seed"].unique()}
        return {seed: float(each["value"].mean()) for seed, each in by_seed.items() if _whole(each)}

    def paired_accuracies(self, label: str, init: str) -> list[float]:
        """The same of the seeds of `tasked`."""
        found = self.accuracies(label, init)
        return [found[seed] for seed in self.tasked(label)]

    def accuracy(self, label: str, init: str) -> str:
        """Their mean and sample standard deviation."""
        found = self.paired_accuracies(label, init)
        return mean_and_deviation(found, 3) if found else NOT_RUN

    def gain(self, label: str) -> str:
        """OA-EM's mean accuracy less greedy's, seed by seed: mean and interval."""
        greedy, oaem = (self.paired_accuracies(label, init) for init in INITS)
        gains = [after - before for before, after in zip(greedy, oaem, strict=True)]
        return interval(spread(gains)) if gains else NOT_RUN

    def tasked(self, label: str) -> list[int]:
        """The seeds whose six tasks were run with both initialisations."""
        return sorted(set(self.accuracies(label, "greedy")) & set(self.accuracies(label, "oaem")))

    def standard_error(self, label: str) -> float:
        """Of the largest such mean of a run, from the number of items alone."""
        rows = _accuracy_rows(self._rows(label, stage="post_pv"))
        squares = [(each["stderr"] ** 2).sum() for _, each in rows.groupby(["init", "seed"]) if _whole(each)]
        return math.sqrt(max(squares)) / len(TASK_METRICS)

    def _across(self, first: str, second: str, init: str, stage: str, text: str) -> dict[int, float]:
        return paired_ratios(*(self.by_seed(label, init, stage, text) for label in (first, second)))

    def _error(self, label: str, init: str) -> float:
        return float(self._rows(label, metric="relative_error", init=init)["value"].mean())

    def _bits(self, label: str) -> float:
        return float(self._rows(label, metric="true_bits")["value"].mean())

    def _mean_rho(self, label: str) -> float:
        return float(self._rows(label, metric="rho")["value"].mean())

    def _rows(self, label: str, **wanted: str) -> pd.DataFrame:
        return where(self.runs[label], **wanted)


def over_seeds(ratios: Mapping[int, float]) -> str:
    """Geometric mean of ratios by seed with its interval; one seed alone has none."""
    return interval(ratio_spread(list(ratios.values()))) if ratios else NOT_RUN


def perplexities(rows: pd.DataFrame) -> dict[tuple[str, str, str], dict[int, float]]:
    """Perplexities of one model, geometry and search point by initialisation, stage and text, then by seed."""
    rows = rows[rows["metric"] == "perplexity"]
    keys = zip(rows["init"], rows["stage"], rows["dataset"], strict=True)
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for key, seed, value in zip(keys, rows["seed"], rows["value"], strict=True):
        found.setdefault(key, {})[int(seed)] = float(value)
    return found


def mean_accuracy(rows: pd.DataFrame) -> str:
    """Of one model over the six tasks."""
    found = _accuracy_rows(rows)
    return f"{found['value'].mean():.3f}" if _whole(found) else NOT_RUN


def _accuracy_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The six tasks, each with the accuracy that the paper reports for it."""
    reported = {task: metric for task, (_, metric) in TASK_METRICS.items()}
    return rows[rows["dataset"].map(reported) == rows["metric"]]


def _whole(rows: pd.DataFrame) -> bool:
    """Whether these are rows of all six tasks."""
    return set(rows["dataset"]) == set(TASK_METRICS)
