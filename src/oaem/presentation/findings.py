"""docs/findings.md, its details and figures, made of archives alone: `python -m oaem.presentation.findings`.

The text of both pages is docs/findings.md.j2, in which every measured number is a call of a function of `Numbers`; a
test holds them to the archive.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from matplotlib.figure import Figure

from oaem.config.geometry import Geometry
from oaem.config.schema import Config, load
from oaem.measurements.table import joined, read_csv
from oaem.presentation.archived import RUN, paths, where
from oaem.presentation.figures.drawing import canvas, logarithmic, save, styled
from oaem.presentation.figures.sweep import rho_sweep
from oaem.presentation.figures.why import why as why_figure
from oaem.presentation.models_compared import Compared
from oaem.presentation.pages import INITS, STAGES, TEXTS, rendered
from oaem.presentation.pairs import Pairs, mean_accuracy
from oaem.presentation.search_points import BENCHES, SearchPoints
from oaem.presentation.spread import paired_ratios, ratio_spread
from oaem.presentation.trend import Trend, interval
from oaem.presentation.why import LINEARS, REPLACED, Why
from oaem.runtime.atomic import write_text

DETAILED = ("# Findings in detail", "## Limits")  # where the details begin in the text, and where they end
CHOSEN = ("post_pv", "post_pv_validation", "post_pv_last")  # the state that each way of choosing an epoch takes
COLORS = {"pre_pv": "#a03c28", "post_pv": "#1f4e79"}


@dataclass(frozen=True)
class Case:
    """The runs at one geometry, as the page calls them; of what two archives measured, the first one's stands."""

    archives: tuple[str, ...]
    geometry: str
    label: str


EVIDENCE, BUDGETS, SWEPT = "evidence-2026-11-25", "budgets-2026-11-25", "rho-sweep-2026-11-25"
TUNED, TASKED = "evidence-2026-11-29", "evidence-2026-11-29b"  # A made anew, for its PV-tuning and for its tasks
ENDS = "rho-sweep-2026-11-29b"  # of the sweep
ON_ORIGINAL = "ablation-original-inputs-2026-11-25"
AGAIN = "ablation-nothing-2026-11-29"  # B made anew
ONE_ROUND, TEN_ROUNDS = "ablation-rounds-1-2026-11-29", "ablation-rounds-10-2026-11-29b"
EXACT_M_STEP, EXACT_CODEBOOKS = "ablation-exact-m-step-2026-11-29", "ablation-exact-codebooks-2026-11-29"
TARGETS = "ablation-model-targets-2026-11-29"
UNTUNED = "ablation-no-block-tuning-2026-11-29b"
SMALL = "small-rho-sweep-2026-11-29"
TWICE = (
    (TUNED, TASKED),
    (AGAIN, "ablation-nothing-2026-11-29b"),
    ("ablation-no-block-tuning-2026-11-29", UNTUNED),
    ("ablation-rounds-10-2026-11-29", TEN_ROUNDS),
    ("ablation-less-text-2026-11-29", "ablation-less-text-2026-11-29b"),
    ("rho-sweep-2026-11-29", ENDS),
    ("search-points-2026-11-29", "search-points-2026-11-29b"),
)
"""Runs that were made twice, on other cards of one kind; the code of the first pair is not the same."""
CASES = (
    Case((EVIDENCE, TUNED, TASKED), "3bpp-3x8g8", "A"),
    Case((EVIDENCE,), "2bpp-2x8g8", "B"),
    Case((BUDGETS,), "2bpp-2x6g6", "C"),
)
SWEEP = tuple(
    Case((EVIDENCE, SWEPT, ENDS), f"2bpp-2x{bits}g{bits}", f"{bits} bit over {bits}") for bits in (12, 8, 6, 4, 3)
)
"""The sweep of rho at one bit rate, from the smallest rho upwards."""
SMALL_SWEEP = tuple(Case((SMALL,), f"2bpp-2x{bits}g{bits}", f"{bits} bit over {bits} (small)") for bits in (8, 6, 4, 3))
"""The same at the demonstration's budgets."""
ORIGINAL = Case((ON_ORIGINAL,), "2bpp-2x8g8", "B on original inputs")
REPEATED = Case((AGAIN,), "2bpp-2x8g8", "B made again")
WITHOUT_BLOCK_TUNING = Case((UNTUNED,), "2bpp-2x8g8", "B without block tuning")
ON_TARGETS = Case((TARGETS,), "2bpp-2x8g8", "B tuned to the unquantised model")
SOLVED = Case((EXACT_CODEBOOKS,), "2bpp-2x8g8", "B by conjugate gradients")
CHANGED = (
    Case((ONE_ROUND,), "2bpp-2x8g8", "one round instead of three"),
    Case((TEN_ROUNDS,), "2bpp-2x8g8", "ten rounds instead of three"),
    Case((EXACT_M_STEP,), "2bpp-2x8g8", "the exact M-step instead of Adam"),
)
"""B with one change of OA-EM; docs/ablations.md has all changes."""
EVERY_CASE = (*CASES, *SWEEP, *SMALL_SWEEP, ORIGINAL, REPEATED, WITHOUT_BLOCK_TUNING, ON_TARGETS, SOLVED, *CHANGED)
ARCHIVES = tuple(dict.fromkeys(chain.from_iterable(case.archives for case in EVERY_CASE)))


class Numbers(Pairs):
    """What the page may quote of cases and sweep, as text, or as what text is made of."""

    def __init__(self, archives: Path) -> None:
        found = {name: read_csv(archives / name / "metrics.csv") for name in ARCHIVES}
        self.unquantised = joined(found[name] for name in (EVIDENCE, TASKED)).query("stage == 'fp16'")
        runs = {}
        for case in EVERY_CASE:
            rows = joined(found[name] for name in case.archives)
            # The exact M-step is a change of OA-EM, whose place it takes.
            runs[case.label] = rows[rows["geometry"] == case.geometry].replace({"init": {"oaem_exact": "oaem"}})
        super().__init__(runs)

    def original(self, text: str) -> str:
        """Perplexity of the unquantised model."""
        (value,) = where(self.unquantised, metric="perplexity", dataset=text)["value"]
        return f"{value:.2f}"

    def original_accuracy(self) -> str:
        """Its mean accuracy over the six tasks."""
        return mean_accuracy(self.unquantised)

    def span(self, label: str, init: str, stage: str, text: str) -> str:
        """The smallest and the largest seed."""
        values = self.by_seed(label, init, stage, text).values()
        return f"{min(values):.1f} to {max(values):.1f}"

    def growth(self, label: str, stage: str) -> str:
        """The ratio on the far text over that in-domain, paired by seed."""
        far, near = (self.ratios(label, stage, text) for text in ("boolq", "wikihow"))
        return interval(ratio_spread([far[seed] / near[seed] for seed in far]))

    def severity(self, first: str, second: str, stage: str = "pre_pv", text: str = "boolq") -> str:
        """The ratio at a stage, if not said of which on the far text, in one case over that in another, by seed."""
        one, other = (self.ratios(label, stage, text) for label in (first, second))
        return interval(ratio_spread(list(paired_ratios(one, other).values())))

    def on_texts(self, first: str, second: str, init: str, stage: str) -> str:
        """Perplexity in one case over that in another, on text after text."""
        return ", ".join(self.across(first, second, init, stage, text) for text in TEXTS)

    def lower(self, first: str, second: str, init: str, stage: str, text: str) -> str:
        """With how many seeds the second case has the lower perplexity."""
        ratios = self._across(first, second, init, stage, text).values()
        return f"{sum(ratio > 1 for ratio in ratios)} of {len(ratios)}"

    def apart(self, first: str, second: str, stage: str, text: str) -> str:
        """How far two makings of the same runs are from each other, in per cent: the nearest and the farthest pair."""
        ratios = [each for init in INITS for each in self._across(first, second, init, stage, text).values()]
        ends = sorted(100 * (max(ratio, 1 / ratio) - 1) for ratio in ratios)
        return f"{ends[0]:.1f} to {ends[-1]:.1f} %"

    def averaged(self, first: str, second: str, stage: str, text: str) -> str:
        """Greedy over OA-EM, by seed the geometric mean of two makings of the same runs."""
        one, other = (self.ratios(label, stage, text) for label in (first, second))
        return interval(ratio_spread([math.sqrt(one[seed] * other[seed]) for seed in one if seed in other]))

    def noise(self, label: str, init: str, stage: str, text: str) -> str:
        """Standard deviation over seeds in per cent of the mean."""
        values = list(self.by_seed(label, init, stage, text).values())
        return f"{100 * statistics.stdev(values) / statistics.fmean(values):.1f} %"

    def one_state(self, *labels: str) -> str:
        """In how many tuned runs test text, validation text and the last epoch choose states of one far perplexity."""
        spreads = self._choices(labels)
        return f"{sum(spread == 1 for spread in spreads)} of {len(spreads)}"

    def choice(self, *labels: str) -> str:
        """By how much that perplexity differs at most, in per cent."""
        return f"{100 * (max(self._choices(labels)) - 1):.1f} %"

    def unswept(self, stage: str) -> str:
        """The geometries of the sweep that have no pair of runs at a stage."""
        return ", ".join(case.label for case in SWEEP if not self.measured(case.label, stage))

    def trend(self, stage: str, sweep: tuple[Case, ...] = SWEEP) -> Trend:
        """A sweep of rho: its geometries with a pair of runs at a stage, for what is said of all of them together."""
        measured = [case for case in sweep if self.measured(case.label, stage)]
        rates = {case.label: Geometry.parse(case.geometry).bits_per_parameter for case in measured}
        return Trend([self.rung(label, stage, rate) for label, rate in rates.items()])

    def seconds(self, label: str, stage: str, init: str, phase: str = "total") -> str:
        """Mean seconds of a run."""
        return f"{self._rows(label, metric='seconds', init=init, stage=stage, dataset=phase)['value'].mean():.0f}"

    def _choices(self, labels: tuple[str, ...]) -> list[float]:
        """Of each tuned run the largest over the smallest far perplexity among its chosen states."""
        found = []
        for label, init in ((label, init) for label in labels for init in INITS):
            chosen = [self.by_seed(label, init, stage, "boolq") for stage in CHOSEN]
            found += [max(values) / min(values) for values in ([each[seed] for each in chosen] for seed in chosen[0])]
        return found


def made_twice(archives: Path) -> dict[str, tuple[int, int, int]]:
    """Perplexities of runs made twice, by stage: the same to the last digit, all, and of how many runs."""
    files = [[archives / name / "metrics.csv" for name in pair] for pair in TWICE]
    tables = [[read_csv(path) for path in pair] for pair in files if all(path.exists() for path in pair)]
    pairs = [one.merge(other, on=[*RUN, "stage", "dataset", "metric"]) for one, other in tables]
    found = {}
    for stage in STAGES:
        both = [where(rows, metric="perplexity", stage=stage) for rows in pairs]
        same = sum(int((rows["value_x"] == rows["value_y"]).sum()) for rows in both)
        found[stage] = same, sum(map(len, both)), sum(len(rows.drop_duplicates(RUN)) for rows in both)
    return found


def pages(text: str) -> dict[str, str]:
    """The text of `page` by the files in docs that show it: what everyone reads, and the sections behind it."""
    opening, ending = (text.index(f"\n{title}\n") + 1 for title in DETAILED)
    return {"findings.md": text[:opening] + text[ending:], "findings-details.md": text[opening:ending]}


def page(template: Path, archives: Path) -> str:
    """All of it as Markdown; the same archive gives the same bytes."""
    numbers = Numbers(archives)
    functions: dict[str, Callable[..., object]] = {
        name: getattr(numbers, name) for name in dir(numbers) if callable(getattr(numbers, name)) and name[0] != "_"
    }
    return rendered(
        template,
        **functions,
        made_from=paths(dict.fromkeys((*ARCHIVES, *chain(*TWICE)))),
        made_twice=made_twice(archives),
        models=Compared(archives),
        benches=[SearchPoints(bench, archives) for bench in BENCHES],
        why=Why(archives),
        linears=(*LINEARS, ""),
        replaced=REPLACED,
        cases=CASES,
        sweep=SWEEP,
        small_sweep=SMALL_SWEEP,
        small_folder=paths([SMALL]),
        original_inputs=ORIGINAL.label,
        again=REPEATED.label,
        untuned=WITHOUT_BLOCK_TUNING.label,
        on_targets=ON_TARGETS.label,
        exactly=SOLVED.label,
        changed=CHANGED,
        inits=INITS,
        texts=TEXTS,
        stages=STAGES,
        interval=interval,
    )


@styled
def figure(archives: Path) -> Figure:
    """Greedy over OA-EM by case and text: every seed a mark, the bar the interval of their mean."""
    numbers = Numbers(archives)
    drawn, panels = canvas(8.2, 2.9, len(CASES))
    found: list[float] = [1.0]
    for axes, case in zip(panels, CASES, strict=True):
        for index, text in enumerate(TEXTS):
            for shift, stage in zip((-0.14, 0.14), STAGES, strict=True):
                ratios = list(numbers.ratios(case.label, stage, text).values())
                if not ratios:
                    continue
                over = ratio_spread(ratios)
                low, high = over.low or over.mean, over.high or over.mean
                found += [*ratios, low, high]
                height, color = index + shift, COLORS[stage]
                axes.plot([low, high], [height, height], color=color, linewidth=5, alpha=0.28, solid_capstyle="butt")
                axes.scatter(ratios, [height] * len(ratios), s=16, color=color, zorder=3, label=STAGES[stage])
        axes.axvline(1, color="black", linewidth=0.9)
        axes.set_yticks(
            range(len(TEXTS)), [label.replace(" (", "\n(") for label in TEXTS.values()] if axes is panels[0] else []
        )
        axes.set(ylim=(len(TEXTS) - 0.5, -0.5), xlabel="greedy / OA-EM perplexity")
        axes.set_title(f"{case.label}: rho {numbers.rho(case.label)}")
        axes.grid(axis="y", visible=False)
    for axes in panels:
        logarithmic(axes.xaxis, min(found) / 1.03, max(found) * 1.03)
    handles, labels = panels[1].get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    panels[0].legend(shown.values(), shown.keys(), loc="lower right", fontsize=8)
    return drawn


def sweep_figure(archives: Path, config: Config) -> Figure:
    """The report's figure of the sweep that `config` describes, of every seed that was measured at a geometry."""
    numbers = Numbers(archives)
    (entry,) = config.grid
    grid = []
    for case in SWEEP:
        (rate,) = (name for name, spec in config.geometries.items() if spec.geometry.name == case.geometry)
        seeds = tuple(numbers.ratios(case.label, "pre_pv", "boolq"))
        grid.append(entry.model_copy(update={"bpp": (rate,), "seeds": seeds}))
    metrics = joined(numbers.runs[case.label] for case in SWEEP)
    return rho_sweep(metrics, config.model_copy(update={"grid": tuple(grid)}), "")


def figures(root: Path) -> dict[str, Figure]:
    """Every figure of the page by its name in docs/figures, without ending."""
    archives, config = root / "archive", load(root / "config" / "rho-sweep.yaml")
    inquired = Why(archives)
    whys = {inquired.picture(label): why_figure(inquired.inquiries[label], "boolq") for label in inquired.shown()}
    return {"findings": figure(archives), "rho_sweep": sweep_figure(archives, config), **whys}


def write(root: Path) -> None:
    """Write both pages and their figures below the root of the repository."""
    for name, text in pages(page(root / "docs" / "findings.md.j2", root / "archive")).items():
        write_text(root / "docs" / name, text)
    for name, drawn in figures(root).items():
        save(drawn, root / "docs" / "figures" / f"{name}.svg")


if __name__ == "__main__":
    write(Path())
