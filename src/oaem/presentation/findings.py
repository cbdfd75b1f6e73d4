"""docs/findings.md and its figure, made of archived measurements alone: `python -m oaem.presentation.findings`.

The page's text is docs/findings.md.j2, in which every measured number is a call of a function of `Numbers`; a test
holds the page to the archive.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from oaem.presentation.figures.drawing import canvas, logarithmic, save, styled
from oaem.presentation.spread import Spread, ratio_spread
from oaem.runtime.atomic import write_text

if TYPE_CHECKING:
    import pandas as pd

TEXTS = {"wikihow": "WikiHow (in-domain)", "lambada": "LAMBADA (near)", "boolq": "Wikipedia (far)"}
STAGES = {"pre_pv": "before PV", "post_pv": "after PV"}
COLORS = {"pre_pv": "#a03c28", "post_pv": "#1f4e79"}


@dataclass(frozen=True)
class Case:
    """One archive's runs at one geometry, as the page calls them."""

    archive: str
    geometry: str
    label: str


CASES = (
    Case("evidence-2026-11-25", "3bpp-3x8g8", "A"),
    Case("evidence-2026-11-25", "2bpp-2x8g8", "B"),
    Case("budgets-2026-11-25", "2bpp-2x6g6", "C"),
)


class Numbers:
    """What the page may quote; every method returns text, with the same rounding everywhere."""

    def __init__(self, archives: Path) -> None:
        import pandas as pd

        self.metrics = {
            name: pd.read_csv(archives / name / "metrics.csv") for name in dict.fromkeys(case.archive for case in CASES)
        }
        self.cases = {case.label: case for case in CASES}

    def by_seed(self, label: str, init: str, stage: str, text: str) -> dict[int, float]:
        """Perplexity by seed, empty where it was not run."""
        case = self.cases[label]
        frame = self._rows(case.archive, metric="perplexity", geometry=case.geometry, stage=stage, dataset=text)
        frame = frame[frame["init"] == init]
        return {int(seed): float(value) for seed, value in zip(frame["seed"], frame["value"], strict=True)}

    def ratios(self, label: str, stage: str, text: str) -> dict[int, float]:
        """Greedy over OA-EM by seed."""
        greedy, oaem = (self.by_seed(label, init, stage, text) for init in ("greedy", "oaem"))
        return {seed: greedy[seed] / oaem[seed] for seed in sorted(greedy) if seed in oaem}

    def measured(self, label: str, stage: str) -> bool:
        """Whether there are pairs of runs at a stage."""
        return bool(self.ratios(label, stage, "boolq"))

    def original(self, text: str) -> str:
        """Perplexity of the unquantised model."""
        frame = self._rows(CASES[0].archive, metric="perplexity", stage="fp16", dataset=text)
        return f"{frame['value'].iloc[0]:.2f}"

    def mean(self, label: str, init: str, stage: str, text: str) -> str:
        """Mean and sample standard deviation over seeds."""
        values = list(self.by_seed(label, init, stage, text).values())
        digits = 1 if statistics.fmean(values) >= 100 else 2
        return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    def span(self, label: str, init: str, stage: str, text: str) -> str:
        """The smallest and the largest seed."""
        values = self.by_seed(label, init, stage, text).values()
        return f"{min(values):.1f} to {max(values):.1f}"

    def ratio(self, label: str, stage: str, text: str) -> str:
        """The paired ratio with its interval."""
        return _interval(ratio_spread(list(self.ratios(label, stage, text).values())))

    def better(self, label: str, stage: str, text: str) -> str:
        """With how many seeds OA-EM has the lower perplexity."""
        ratios = self.ratios(label, stage, text).values()
        return f"{sum(ratio > 1 for ratio in ratios)} of {len(ratios)}"

    def growth(self, label: str, stage: str) -> str:
        """The ratio on the far text over that in-domain, paired by seed."""
        far, near = (self.ratios(label, stage, text) for text in ("boolq", "wikihow"))
        return _interval(ratio_spread([far[seed] / near[seed] for seed in far]))

    def severity(self, first: str, second: str) -> str:
        """The far ratio before PV-tuning in one case over that in another, paired by seed."""
        one, other = (self.ratios(label, "pre_pv", "boolq") for label in (first, second))
        return _interval(ratio_spread([one[seed] / other[seed] for seed in one]))

    def noise(self, label: str, init: str, stage: str, text: str) -> str:
        """Standard deviation over seeds in per cent of the mean."""
        values = list(self.by_seed(label, init, stage, text).values())
        return f"{100 * statistics.stdev(values) / statistics.fmean(values):.1f} %"

    def rho(self, label: str) -> str:
        """The smallest and the largest representational ratio of a layer."""
        values = self._layers(label, "rho")["value"]
        return f"{values.min():.2g} to {values.max():.2g}"

    def error(self, label: str, init: str) -> str:
        """Mean relative output error of the layers."""
        frame = self._layers(label, "relative_error")
        return f"{frame[frame['init'] == init]['value'].mean():.4f}"

    def bits(self, label: str) -> str:
        """Bits a quantised weight with codebooks and scales."""
        return f"{self._layers(label, 'true_bits')['value'].mean():.2f}"

    def seconds(self, label: str, stage: str, init: str, phase: str = "total") -> str:
        """Mean seconds of a run."""
        case = self.cases[label]
        rows = self._rows(case.archive, metric="seconds", geometry=case.geometry, stage=stage, dataset=phase)
        return f"{rows[rows['init'] == init]['value'].mean():.0f}"

    def _layers(self, label: str, metric: str) -> pd.DataFrame:
        case = self.cases[label]
        return self._rows(case.archive, metric=metric, geometry=case.geometry, stage="layers")

    def _rows(self, archive: str, **wanted: str) -> pd.DataFrame:
        frame = self.metrics[archive]
        for column, value in wanted.items():
            frame = frame[frame[column] == value]
        return frame


def _interval(over: Spread) -> str:
    return f"{over.mean:.3f} [{over.low:.3f}, {over.high:.3f}]"


def page(template: Path, archives: Path) -> str:
    """The page as Markdown; the same archive gives the same bytes."""
    numbers = Numbers(archives)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    functions: dict[str, Callable[..., object]] = {
        name: getattr(numbers, name) for name in dir(numbers) if callable(getattr(numbers, name)) and name[0] != "_"
    }
    text = environment.from_string(template.read_text(encoding="utf-8"))
    return text.render(**functions, cases=CASES, texts=TEXTS, stages=STAGES)


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


def write(root: Path) -> None:
    """Write the page and its figure below the root of the repository."""
    write_text(root / "docs" / "findings.md", page(root / "docs" / "findings.md.j2", root / "archive"))
    save(figure(root / "archive"), root / "docs" / "figures" / "findings.svg")


if __name__ == "__main__":
    write(Path())
