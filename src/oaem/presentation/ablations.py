"""docs/ablations.md, what one change does, made of archived runs alone: `python -m oaem.presentation.ablations`.

An ablation is a file config/ablations/{name}.yaml that amends config/evidence.yaml; archive/ablation-{name}-{date}
holds what was measured with it; of several they all count, and of what two have the newer one's. Its runs are compared,
seed by seed, with those of the evidence: greedy with greedy, any other initialisation with OA-EM. An epoch chosen in
another way needs no run of its own, since every run measures all choices.

The same at the demonstration's budgets: files in config/ablations/small amend config/config.yaml, and their archives
begin with `small-`; the one that changes nothing is what the others are told from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oaem.config.grid import Run
from oaem.config.schema import Config, load
from oaem.errors import UserError
from oaem.measurements.table import joined, read_csv
from oaem.presentation.archived import where
from oaem.presentation.findings import EVIDENCE
from oaem.presentation.pages import DATE, INITS, STAGES, TEXTS, mean_and_deviation, rendered
from oaem.presentation.pairs import over_seeds, perplexities
from oaem.presentation.spread import paired_ratios
from oaem.presentation.tables.build import NOT_RUN
from oaem.presentation.trend import Ratios, Tally
from oaem.runtime.atomic import write_text

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "As in the evidence"
EPOCHS = {"post_pv_validation": "Epoch by validation text", "post_pv_last": "Last epoch"}
UNCHANGED = "the same"
PLACE = ("model", "geometry", "beam_width", "max_epochs")

Values = Mapping[tuple[str, str], Mapping[int, float]]  # perplexity by (stage, text) and seed
Ablations = Mapping[str, tuple[Config, "pd.DataFrame | None"]]  # by name: configuration, what was measured with it


@dataclass(frozen=True)
class Bench:
    """What changes are told from: `config`, a file in config/, which those of the folder `changes` there amend.

    archives: how the names of theirs begin. stages: those that its runs have.
    """

    config: str
    changes: str
    archives: str
    stages: tuple[str, ...]


AT_EVIDENCE = Bench("evidence.yaml", "ablations", "ablation-", tuple(STAGES))
AT_DEMONSTRATION = Bench("config.yaml", "ablations/small", "small-ablation-", ("pre_pv",))
NOTHING = "nothing"


@dataclass(frozen=True)
class Line:
    """A row of both tables: what is changed, on which initialisation's runs, and perplexity there and in the evidence.

    init: `greedy` or `oaem`, the one of the evidence that it is compared with. stages: those that the change can touch.
    """

    title: str
    init: str
    values: Values
    baseline: Values
    stages: tuple[str, ...] = tuple(STAGES)

    @property
    def measured(self) -> bool:
        """Whether there is anything to show."""
        return any(stage in self.stages for stage, _ in self.values)

    @property
    def seeds(self) -> str:
        """Those that it and the evidence have."""
        found, before = ({seed for each in values.values() for seed in each} for values in (self.values, self.baseline))
        return ", ".join(map(str, sorted(found & before)))

    def perplexity(self, stage: str, text: str) -> str:
        """Mean and standard deviation over its seeds."""
        if stage not in self.stages:
            return UNCHANGED
        values = list(self.values.get((stage, text), {}).values())
        return mean_and_deviation(values) if values else NOT_RUN

    def change(self, stage: str, text: str) -> str:
        """Over the evidence, seed by seed: mean ratio and its interval; below 1 the change lowers perplexity."""
        if stage not in self.stages:
            return UNCHANGED
        return over_seeds(_ratios(self.values, self.baseline, stage, text))

    @property
    def intervals(self) -> str:
        """Where those of its changes lie, on all texts and at all stages that were measured."""
        return _tally(self.values, self.baseline, self.stages).intervals


@dataclass(frozen=True)
class Gap:
    """Greedy against OA-EM under one change; where it cannot touch greedy, the evidence's greedy."""

    title: str
    greedy: Values
    oaem: Values

    def ratio(self, stage: str, text: str) -> str:
        """Greedy over OA-EM, seed by seed: mean ratio and its interval; above 1 OA-EM is better."""
        return over_seeds(_ratios(self.greedy, self.oaem, stage, text))

    @property
    def tally(self) -> Tally:
        """How often OA-EM wins, on all texts and at all stages that were measured."""
        return _tally(self.greedy, self.oaem, tuple(STAGES))


def gaps(rows: Sequence[Line]) -> list[Gap]:
    """One for each change that OA-EM was measured with, the evidence's own first."""
    evidence = next(line.values for line in rows if line.init == "greedy")
    greedy = {line.title: line.values for line in rows if line.init == "greedy"}
    return [
        Gap(line.title, greedy.get(line.title, evidence), line.values)
        for line in rows
        if line.init == "oaem" and line.measured and line.title not in EPOCHS.values()
    ]


def lines(evidence: pd.DataFrame, ablations: Ablations, title: str = BASELINE) -> list[Line]:
    """The rows: the evidence, other choices of an epoch in it, then the ablations, each for its initialisations.

    evidence: rows of metrics.csv; title: what they are called. UserError unless all are about one model at one geometry
    and one search point.
    """
    place = _place({name: config for name, (config, _) in ablations.items()})
    baseline = {init: perplexities_at(evidence, place, init) for init in INITS}
    found = [Line(title, init, values, values) for init, values in baseline.items()]
    for stage, choice in EPOCHS.items():
        for init, values in baseline.items():
            chosen = {("post_pv", text): by_seed for (at, text), by_seed in values.items() if at == stage}
            found.append(Line(choice, init, chosen, values, stages=("post_pv",)))
    for config, measured in ablations.values():
        for init in dict.fromkeys(run.init for run in config.runs()):
            values = {} if measured is None else perplexities_at(measured, place, init)
            partner = init if init == "greedy" else "oaem"
            found.append(Line(config.title, partner, values, baseline[partner]))
    return found


def perplexities_at(metrics: pd.DataFrame, place: Mapping[str, object], init: str) -> Values:
    """Perplexity by (stage, text) and seed of the runs of `init` at `place`, which names columns of metrics.csv."""
    found = perplexities(where(metrics, **place))
    return {(stage, text): by_seed for (each, stage, text), by_seed in found.items() if each == init}


def read_ablations(root: Path, bench: Bench = AT_EVIDENCE) -> Ablations:
    """The ablations of a bench in the repository at `root`, for `lines`."""
    found: dict[str, tuple[Config, pd.DataFrame | None]] = {}
    for path in sorted((root / "config" / bench.changes).glob("*.yaml")):
        archives = sorted((root / "archive").glob(f"{bench.archives}{path.stem}{DATE}/metrics.csv"))
        measured = joined(map(read_csv, reversed(archives))) if archives else None
        found[path.stem] = (load(root / "config" / bench.config, path), measured)
    return found


def page(template: Path, root: Path) -> str:
    """The page as Markdown; the same archives give the same bytes."""
    evidence = read_csv(root / "archive" / EVIDENCE / "metrics.csv")
    small = dict(read_ablations(root, AT_DEMONSTRATION))
    plain, demonstration = small.pop(NOTHING)
    return rendered(
        template, texts=TEXTS, inits=INITS, evidence=EVIDENCE,
        large=_view(AT_EVIDENCE, evidence, read_ablations(root), BASELINE),
        small=None if demonstration is None else _view(AT_DEMONSTRATION, demonstration, small, plain.title),
    )  # fmt: skip


def _view(bench: Bench, baseline: pd.DataFrame, ablations: Ablations, title: str) -> dict[str, object]:
    """What the page shows of a bench."""
    rows = lines(baseline, ablations, title)
    _, *changed = found = gaps(rows)
    return {
        "lines": [line for line in rows if line.measured],
        "gaps": found,
        "ahead": Tally([ratios for gap in changed for ratios in gap.tally.found]),
        "stages": {stage: STAGES[stage] for stage in bench.stages},
        "titles": {name: config.title for name, (config, _) in ablations.items()},
        "absent": _absent(bench, ablations),
    }


def _absent(bench: Bench, ablations: Ablations) -> list[str]:
    """The ablations without an archive, and those without runs at a stage of the bench."""
    found = [name for name, (_, measured) in ablations.items() if measured is None]
    for stage in bench.stages:
        lacking = [name for name, (_, rows) in ablations.items() if rows is not None and where(rows, stage=stage).empty]
        found += [f"{name} {STAGES[stage]}-tuning" for name in lacking]
    return found


def _ratios(one: Values, other: Values, stage: str, text: str) -> Ratios:
    return paired_ratios(*(each.get((stage, text), {}) for each in (one, other)))


def _tally(one: Values, other: Values, stages: Sequence[str]) -> Tally:
    found = [_ratios(one, other, stage, text) for stage in stages for text in TEXTS]
    return Tally([ratios for ratios in found if ratios])


def _place(configs: Mapping[str, Config]) -> dict[str, object]:
    """Where all runs of all ablations lie: one model, geometry and search point."""
    places = {name: {_coordinates(run) for run in config.runs()} for name, config in configs.items()}
    together: Sequence[tuple[object, ...]] = sorted(set().union(*places.values()), key=str)
    if len(together) != 1:
        told = "\n".join(f"  {name}: {', '.join(map(str, sorted(found, key=str)))}" for name, found in places.items())
        raise UserError(
            f"config/ablations: a change is told from the evidence at one model, geometry and search point, but the "
            f"grids have {len(together)}. Make them one:\n{told}"
        )
    return dict(zip(PLACE, together[0], strict=True))


def _coordinates(run: Run) -> tuple[object, ...]:
    return run.model, run.geometry.name, run.beam_width, run.max_epochs


def write(root: Path) -> None:
    """Write the page below the root of the repository."""
    write_text(root / "docs/ablations.md", page(root / "docs/ablations.md.j2", root))


if __name__ == "__main__":
    write(Path())
