"""The page's section "Why": how far errors, their directions and their size account for the gap of two initialisations.

Made of archives that hold runs compared layer by layer (`oaem.evaluation.inquiry` says what their tables are). A case
without an archive yet is "not run"; one that comes later, under a name that its pattern knows, fills it in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oaem.presentation.archived import ARCHIVE, archived, layer_pairs, lower_layers, paths, where
from oaem.presentation.pages import DATE, INITS, mean_and_deviation
from oaem.presentation.pairs import over_seeds
from oaem.presentation.spread import paired_ratios
from oaem.presentation.tables.build import NOT_RUN

if TYPE_CHECKING:
    import pandas as pd

WALK = "walk"
MEASURES = {
    WALK: "relative_error",
    "all": "relative_error",
    "few": "relative_error_few_directions",
    "others": "relative_error_other_directions",
}
"""A layer's relative error in the walk, on what its run's own blocks gave it; and on the unquantised model's inputs, in
all directions, in the first hundredth of them, in the others."""
UNQUANTISED = "unquantised"
OTHER = "other"  # the giver that is the run's partner
PARTS = ("few directions", "other directions", "size")
BLOCK, KIND, ERRORS = "block", "kind", "errors"
REPLACED = (
    ("everything", "the other model", "everything", OTHER),
    ("size of the error", "the other model", "size", OTHER),
    ("error in the first 1 %", "the other model", "few directions", OTHER),
    ("error in the first 1 %", "no error", "few directions", UNQUANTISED),
    ("error in the other 99 %", "no error", "other directions", UNQUANTISED),
)
"""Rows of the table of replacements: what, by what, and what `Inquiry.changes` is asked for."""
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")

Values = dict[int, float]  # by seed


@dataclass(frozen=True)
class Case:
    """A pair of runs over several seeds: what the page calls it, where its archives are found, which runs it is of."""

    label: str
    archives: str
    geometry: str
    search: tuple[int, int]


CASES = (
    Case("D", f"inquiry{DATE}", "2bpp-2x6g6", (4, 2)),
    Case("B", f"ablation-nothing{DATE}", "2bpp-2x8g8", (8, 100)),
    Case("B without block tuning", f"ablation-no-block-tuning{DATE}", "2bpp-2x8g8", (8, 100)),
)
"""The demonstration's pair; the paper's budgets, the evidence made again; the same with one change."""


class Inquiry:
    """The measurements of one case; what is not there is empty. A run that two archives have is the newer one's."""

    def __init__(self, case: Case, archives: Path) -> None:
        self.case = case
        found = archived(sorted(archives.glob(case.archives)), case.geometry, case.search)
        self.metrics, self.exchange, self.directions = found.metrics, found.exchange, found.directions
        self.unquantised = where(found.unquantised, metric="perplexity")

    def untouched(self, init: str, text: str) -> Values:
        """Perplexity before PV-tuning by seed."""
        return _by_seed(self.metrics, metric="perplexity", stage="pre_pv", init=init, dataset=text)

    def original(self, text: str) -> float:
        """Perplexity of the unquantised model."""
        return float(where(self.unquantised, dataset=text)["value"].iloc[-1])

    def layer_error(self, measure: str, init: str, linear: str = "") -> Values:
        """Mean over blocks of a linear's relative error, by seed; over all linears without a name."""
        if measure == WALK:
            rows = where(self.metrics, metric="relative_error", init=init)
            name, value = "dataset", "value"
        else:
            rows, name, value = where(self.directions, init=init), "linear", MEASURES[measure]
        if rows.empty:
            return {}
        rows = rows[rows[name].map(short) == linear] if linear else rows
        means = rows.groupby("seed")[value].mean()
        return {int(seed): float(mean) for seed, mean in zip(means.index, means, strict=True)}

    def error_ratios(self, measure: str, linear: str = "") -> Values:
        """Greedy's layer error over OA-EM's."""
        return paired_ratios(*(self.layer_error(measure, init, linear) for init in INITS))

    def changes(self, init: str, part: str, giver: str, text: str) -> Values:
        """Perplexity with a part replaced over that of the same model untouched, by seed.

        giver: OTHER or UNQUANTISED. part: as in exchange.csv; `everything` of the other run is that run itself.
        """
        partner = next(each for each in INITS if each != init)
        before = self.untouched(init, text)
        if part == "everything":
            return paired_ratios(self.untouched(partner, text), before)
        source = partner if giver == OTHER else giver
        found = _by_seed(self.exchange, value="perplexity", init=init, part=part, dataset=text, **{"from": source})
        return paired_ratios(found, before)

    def share(self, init: str, part: str, text: str) -> float:
        """What a part of the other's makes of the mean logarithmic gap, over the seeds that have it, else nan."""
        moved, whole = (self.changes(init, each, OTHER, text) for each in (part, "everything"))
        if not moved:
            return math.nan
        return sum(map(math.log, moved.values())) / sum(math.log(whole[seed]) for seed in moved)

    def resized(self) -> Values:
        """Mean over layers of greedy's error in the other directions, scaled as a whole to OA-EM's, over OA-EM's."""
        columns = [MEASURES[each] for each in ("all", "others")]
        layers = self.directions.pivot(index=["seed", "block", "linear"], columns="init", values=columns)
        size, others = (layers[column] for column in columns)
        means = (others["greedy"] * size["oaem"] / size["greedy"]).groupby("seed").mean()
        return {int(seed): float(mean / others["oaem"][seed].mean()) for seed, mean in means.items()}

    def parts(self, group: str) -> list[str]:
        """The single blocks, or kinds of linears, that were exchanged; in their order."""
        names = [] if self.exchange.empty else list(dict.fromkeys(self.exchange["part"]))
        layers = [name for name in names if name not in (*PARTS, "nothing")]
        return [name for name in layers if name.startswith("block ") == (group == BLOCK)]

    def seeds(self, what: str) -> list[int]:
        """Those that have a pair, whose directions were measured, or whose blocks, kinds or errors were exchanged."""
        if what == "pairs":
            return sorted(self.changes("greedy", "everything", OTHER, "boolq"))
        if what == "directions":
            return sorted(self.error_ratios("all"))
        part = PARTS[0] if what == ERRORS else next(iter(self.parts(what)), "")
        return sorted(self.changes("greedy", part, OTHER, "boolq"))


class Why:
    """What the section may quote; every method returns text, with the same rounding everywhere."""

    def __init__(self, archives: Path) -> None:
        self.inquiries = {case.label: Inquiry(case, archives) for case in CASES}

    def measured(self, label: str, what: str) -> bool:
        """Whether a case has any seed of it."""
        return bool(self.inquiries[label].seeds(what))

    def shown(self) -> list[str]:
        """The cases whose directions were measured."""
        return [label for label in self.inquiries if self.measured(label, "directions")]

    def complete(self) -> list[str]:
        """Those of them whose blocks and kinds were exchanged, too."""
        return [label for label in self.shown() if self.measured(label, BLOCK)]

    def absent(self) -> str:
        """All others."""
        return " and ".join(label for label in self.inquiries if label not in self.complete())

    def picture(self, label: str) -> str:
        """The name of a case's figure, without ending."""
        return f"why-{label.lower().replace(' ', '-')}"

    def seeds(self, label: str, what: str) -> str:
        """The seeds of a case."""
        return ", ".join(map(str, self.inquiries[label].seeds(what))) or NOT_RUN

    def archives(self, label: str) -> str:
        """The folders that a case is made of."""
        runs = self.inquiries[label].metrics
        return paths([] if runs.empty else sorted(runs[ARCHIVE].unique()))

    def perplexity(self, label: str, init: str, text: str) -> str:
        """Of the untouched models: mean and sample standard deviation over the seeds that have both."""
        inquiry = self.inquiries[label]
        both = set(inquiry.untouched("greedy", text)) & set(inquiry.untouched("oaem", text))
        return mean_and_deviation([value for seed, value in inquiry.untouched(init, text).items() if seed in both])

    def gap(self, label: str, text: str, part: str = "", giver: str = "") -> str:
        """Greedy's perplexity over OA-EM's, seed by seed: mean and interval; with the same part replaced in both."""
        inquiry = self.inquiries[label]
        whole = inquiry.changes("oaem", "everything", OTHER, text)
        if not part:
            return over_seeds(whole)
        moved = paired_ratios(*(inquiry.changes(init, part, giver, text) for init in INITS))
        return over_seeds({seed: whole[seed] * change for seed, change in moved.items()})

    def error(self, label: str, measure: str, init: str, linear: str = "") -> str:
        """Mean relative error over blocks and seeds."""
        return _mean(self.inquiries[label].layer_error(measure, init, linear))

    def error_ratio(self, label: str, measure: str, linear: str = "") -> str:
        """Greedy over OA-EM, seed by seed: mean and interval."""
        return over_seeds(self.inquiries[label].error_ratios(measure, linear))

    def lower(self, label: str, measure: str) -> str:
        """In how many layers of all seeds OA-EM's error is the lower one."""
        return lower_layers(layer_pairs(self.inquiries[label].directions, MEASURES[measure]))

    def share(self, label: str, column: str, init: str) -> str:
        """Mean over layers and seeds of a share, such as that of the error in the worst hundredth of rows."""
        return f"{100 * where(self.inquiries[label].directions, init=init)[column].mean():.0f} %"

    def shares(self, label: str, column: str) -> str:
        """The smallest and the largest mean of a share over the kinds of linears."""
        means = self.inquiries[label].directions.groupby("linear")[column].mean()
        return f"{100 * means.min():.0f} to {100 * means.max():.0f} %"

    def change(self, label: str, init: str, part: str, giver: str, text: str) -> str:
        """How many times the untouched model's perplexity a replacement makes: mean and interval over seeds."""
        return over_seeds(self.inquiries[label].changes(init, part, giver, text))

    def changes(self, label: str, init: str, group: str, text: str) -> str:
        """The smallest and the largest of such changes over blocks, or kinds of linears, and seeds."""
        inquiry = self.inquiries[label]
        found = [value for part in inquiry.parts(group) for value in inquiry.changes(init, part, OTHER, text).values()]
        return f"{min(found):.2f} to {max(found):.2f}" if found else NOT_RUN

    def nearest(self, label: str, init: str, text: str) -> tuple[str, str, str]:
        """The single block or kind that moves a model farthest towards the other: name, change, share of the gap."""
        inquiry = self.inquiries[label]
        shares = {part: inquiry.share(init, part, text) for part in inquiry.parts(BLOCK) + inquiry.parts(KIND)}
        part = max(shares, key=shares.__getitem__, default="")
        if not part:
            return NOT_RUN, NOT_RUN, NOT_RUN
        name = part if part.startswith(BLOCK) else f"{short(part)} of all blocks"
        return name, self.change(label, init, part, OTHER, text), f"{100 * shares[part]:.0f} %"

    def explained(self, label: str, init: str, part: str, text: str) -> str:
        """The share of the gap that a part of the other's error makes."""
        share = self.inquiries[label].share(init, part, text)
        return NOT_RUN if math.isnan(share) else f"{100 * share:.0f} %"

    def resized(self, label: str) -> str:
        """Greedy's error over OA-EM's in the other directions, once greedy's is of OA-EM's size in all together."""
        return over_seeds(self.inquiries[label].resized())


def _by_seed(frame: pd.DataFrame, value: str = "value", **wanted: object) -> Values:
    rows = where(frame, **wanted)
    return {} if rows.empty else {int(seed): float(each) for seed, each in zip(rows["seed"], rows[value], strict=True)}


def short(name: str) -> str:
    """`q` of self_attn.q_proj."""
    return name.rpartition(".")[2].removesuffix("_proj")


def _mean(values: Mapping[int, float]) -> str:
    return f"{sum(values.values()) / len(values):.4f}" if values else NOT_RUN
