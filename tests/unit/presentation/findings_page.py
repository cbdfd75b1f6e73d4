"""docs/findings.md as its tests read it, and what the archive says of a case, computed another way than the page is."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from scipy import stats

from oaem.presentation.findings import EVERY_CASE
from tests.unit.presentation.paper_metrics import ROOT

TEMPLATE, ARCHIVE = ROOT / "docs/findings.md.j2", ROOT / "archive"
STAGES = {"before PV": "pre_pv", "after PV": "post_pv"}
RATIO = r"[\d.]+ \[[\d.]+, [\d.]+\]"  # with its interval, as the page prints it
NUMBERS = ["beam_width", "max_epochs", "seed"]
RUN = ["model", "geometry", "init", *NUMBERS]
TASKS = {  # the accuracy that the paper reports for each
    "arc_challenge": "acc_norm", "arc_easy": "acc_norm", "hellaswag": "acc_norm", "lambada_openai": "acc",
    "piqa": "acc_norm", "winogrande": "acc",
}  # fmt: skip
LAYERS = [(576, 576)] * 2 + [(192, 576)] * 2 + [(1536, 576)] * 2 + [(576, 1536)]  # of a block of SmolLM2-135M


class Both:
    """docs/findings.md with docs/findings-details.md in its place, as the template has them."""

    def read_text(self, encoding: str = "utf-8") -> str:
        """All of it."""
        first, second = ((ROOT / "docs" / name).read_text(encoding) for name in ("findings.md", "findings-details.md"))
        return first.replace("## Limits\n", f"{second}## Limits\n")


PAGE = Both()


def folders(pattern: str) -> list[Path]:
    """The newest first."""
    return sorted(ARCHIVE.glob(pattern), reverse=True)


def names(rows: pd.DataFrame) -> pd.Series:
    """One text for each row's run."""
    return rows[RUN].astype(dict.fromkeys(NUMBERS, float)).apply(lambda run: "/".join(map(str, run)), axis=1)


def of_kind(pattern: str, name: str) -> pd.DataFrame:
    """A table of one kind of archives: of a run only what the newest folder with a metric of it has."""
    found, newer = [], set()
    for folder in folders(pattern):
        if (folder / f"{name}.csv").exists():
            rows = pd.read_csv(folder / f"{name}.csv")
            found.append(rows[rows["geometry"].isna() | ~names(rows).isin(newer)])
        newer |= set(names(pd.read_csv(folder / "metrics.csv")))
    return pd.concat(found) if found else pd.DataFrame()


def perplexities(label: str, stage: str) -> pd.DataFrame:
    """Rows a seed and text, columns the initialisations."""
    rows = measured(label)
    rows = rows[(rows.metric == "perplexity") & (rows.stage == stage)]
    return rows.pivot(index=["dataset", "seed"], columns="init", values="value")


def measured(label: str) -> pd.DataFrame:
    """Every measurement of a case, from the first archive that has it."""
    case = next(case for case in EVERY_CASE if case.label == label)
    found = pd.concat([pd.read_csv(ARCHIVE / name / "metrics.csv") for name in case.archives])
    found = found[found.geometry == case.geometry]
    return found.groupby(["init", "seed", "stage", "dataset", "metric"], as_index=False).first()


def bullet(opening: str) -> str:
    """What the page says after a bullet's bold opening, on one line."""
    return " ".join(PAGE.read_text(encoding="utf-8").partition(f"- **{opening}**")[2].partition("\n- ")[0].split())


def close(shown: str, value: float) -> bool:
    """Whether a printed number is `value` to its own precision."""
    decimals = len(shown.partition(".")[2])
    return abs(float(shown) - value) <= 0.5 * 10**-decimals + 1e-9


def ends(ratio: str) -> tuple[float, float]:
    """Those of a printed interval."""
    low, high = map(float, re.findall(r"[\d.]+", ratio)[1:])
    return low, high


def check_ratio(runs: pd.DataFrame, ratio: str) -> None:
    """A paired ratio and its interval, by scipy's paired test of the logarithms."""
    logs = runs.map(math.log)
    expected = [(logs["greedy"] - logs["oaem"]).mean()]
    if len(runs) > 1:
        interval = stats.ttest_rel(logs["greedy"], logs["oaem"]).confidence_interval(0.95)
        expected += [interval.low, interval.high]
    check_numbers(ratio, [math.exp(value) for value in expected])


def check_numbers(text: str, expected: Sequence[float]) -> None:
    """Every number of a text."""
    assert all(close(shown, value) for shown, value in zip(re.findall(r"[\d.]+", text), expected, strict=True))


def check_pair(runs: pd.DataFrame, greedy: str, oaem: str, ratio: str) -> None:
    """Means, deviations, the paired ratio and its interval of a row."""
    check_ratio(runs, ratio)
    for shown, init in ((greedy, "greedy"), (oaem, "oaem")):
        check_mean(shown, runs[init])


def check_mean(shown: str, values: pd.Series) -> None:
    """The mean and, of several, the sample standard deviation."""
    mean, _, std = shown.partition(" ± ")
    assert close(mean, values.mean())
    assert close(std, values.std(ddof=1)) if len(values) > 1 else not std


def reported(rows: pd.DataFrame) -> pd.DataFrame:
    """The accuracies of the six tasks that the paper reports."""
    return pd.concat(rows[(rows.dataset == task) & (rows.metric == metric)] for task, metric in TASKS.items())
