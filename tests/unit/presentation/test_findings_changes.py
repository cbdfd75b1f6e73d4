"""What docs/findings.md says of changes of B and of zero-shot tasks, in numbers and words, recomputed another way."""

from __future__ import annotations

import math
import re

import pandas as pd
from scipy import stats

from oaem.config.schema import load
from oaem.presentation.findings import CHANGED, INITS, ON_TARGETS, ORIGINAL, REPEATED, SOLVED, TASKED, TEXTS
from tests.unit.presentation.findings_page import (
    ARCHIVE,
    RATIO,
    STAGES,
    TASKS,
    bullet,
    check_mean,
    check_ratio,
    close,
    ends,
    measured,
    perplexities,
    reported,
)
from tests.unit.presentation.paper_metrics import ROOT


def test_what_more_of_oaem_does_is_the_archives() -> None:
    text = bullet("Does more of OA-EM help more?")
    shown = re.findall(RATIO, text)
    places = [
        (case.label, stage, dataset)
        for case in CHANGED
        for stage in STAGES.values()
        if len(perplexities(case.label, stage))
        for dataset in TEXTS
    ]
    for ratio, (label, stage, dataset) in zip(shown, places, strict=True):
        check_change(ratio, label, REPEATED.label, "oaem", stage, dataset)
    more = [ratio for ratio, (label, *_) in zip(shown, places, strict=True) if label != CHANGED[0].label]
    assert all(float(ratio.split()[0]) <= 1 for ratio in more), "by the mean"
    assert sum(not ends(ratio)[0] < 1 < ends(ratio)[1] for ratio in shown) <= 1, "hardly beyond doubt"
    first = [decided(label, "B", stage, dataset) for label, stage, dataset in places]
    again = [decided(label, REPEATED.label, stage, dataset) for label, stage, dataset in places]
    assert sum(first) > sum(again)
    assert text.startswith("By the mean, and hardly beyond doubt.")
    assert "Over the first making, on another kind of card, more of these intervals leave 1 out" in text


def test_what_is_said_of_exact_codebooks_is_the_archives() -> None:
    text = bullet("Adam or exact?")
    shown = iter(re.findall(RATIO, text))
    for init in INITS:
        for stage in STAGES.values():
            for dataset in TEXTS:
                ratio = next(shown)
                check_change(ratio, SOLVED.label, REPEATED.label, init, stage, dataset)
                low, high = ends(ratio)
                if init == "oaem":
                    assert low < 1 < high, "on none beyond doubt"
                elif stage == "post_pv":
                    assert high < 1, "after PV-tuning on every text"
    for dataset in ("boolq", "wikihow"):
        for stage in STAGES.values():
            ratio = next(shown)
            check_ratio(perplexities(SOLVED.label, stage).loc[dataset], ratio)
            low, high = ends(ratio)
            assert low > 1 if dataset == "boolq" else low < 1 < high, "ahead far, and no lead is seen in-domain"
    for stage in STAGES.values():
        for dataset in TEXTS:
            ratio = next(shown)
            exact, before = (
                perplexities(label, stage).loc[dataset].eval("greedy / oaem")
                for label in (SOLVED.label, REPEATED.label)
            )
            check_ratio(pd.DataFrame({"greedy": exact, "oaem": before}), ratio)
            assert float(ratio.split()[0]) < 1, "by the mean smaller on each text"
    assert next(shown, None) is None
    assert "helps greedy, after PV-tuning on every text, and OA-EM on none beyond doubt.**" in text
    assert "By the mean the lead is smaller than with Adam on each text:" in text


def decided(label: str, other: str, stage: str, dataset: str) -> bool:
    """Whether the interval of OA-EM's perplexity in one case over that in another leaves 1 out."""
    changed, before = (perplexities(each, stage).loc[dataset] for each in (label, other))
    logs = changed.rename(columns={"oaem_exact": "oaem"})["oaem"].map(math.log) - before["oaem"].map(math.log)
    return bool(stats.ttest_1samp(logs, 0).pvalue < 0.05)


def test_what_is_said_of_targets_is_the_archives() -> None:
    text = bullet("Before PV-tuning it is the targets.")
    shown = re.findall(RATIO, text)
    again, original = REPEATED.label, ORIGINAL.label
    before = [(other, init, "pre_pv", t) for other in (again, original) for t in ("wikihow", "boolq") for init in INITS]
    after = [(other, init, "post_pv", "boolq") for other in (again, original) for init in INITS]
    for ratio, (other, init, stage, dataset) in zip(shown, [*before, *after], strict=False):
        check_change(ratio, ON_TARGETS.label, other, init, stage, dataset)
        if (stage, dataset) == ("pre_pv", "wikihow"):
            assert ends(ratio)[1] < 1, "before PV-tuning it is, beyond doubt in-domain"
        assert stage == "post_pv" or float(ratio.split()[0]) < 1
    for ratio, stage in zip(shown[len(before) + len(after) :], STAGES.values(), strict=True):
        check_ratio(perplexities(ON_TARGETS.label, stage).loc["boolq"], ratio)
        assert ends(ratio)[0] > 1, "the advantage stays"
    means = [perplexities(each, "post_pv").groupby("dataset").mean() for each in (original, ON_TARGETS.label)]
    assert (means[0] < means[1]).all(axis=None)
    assert "times original inputs, whose mean is then the lower one on every text." in text


def test_what_is_said_of_tasks_is_the_archives() -> None:
    text = bullet("Zero-shot tasks do not tell the initialisations apart.")
    means = re.findall(r"[\d.]+ ± [\d.]+", text)
    gains = re.findall(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]", text)
    for place, label in enumerate(("A", REPEATED.label)):
        rows = reported(measured(label).query("stage == 'post_pv'"))
        assert (rows.groupby(["init", "seed"]).size() == len(TASKS)).all()
        accuracies = rows.groupby(["seed", "init"])["value"].mean().unstack()
        for init, shown in zip(INITS, means[2 * place :], strict=False):
            check_mean(shown, accuracies[init])
        interval = stats.ttest_rel(accuracies["oaem"], accuracies["greedy"]).confidence_interval(0.95)
        expected = [(accuracies["oaem"] - accuracies["greedy"]).mean(), interval.low, interval.high]
        numbers = re.findall(r"-?[\d.]+", gains[place])
        assert all(close(each, value) for each, value in zip(numbers, expected, strict=True))
        assert interval.low < -0.01 and interval.high > 0.01, "a difference of a point could not be seen"
    rows = pd.read_csv(ARCHIVE / TASKED / "metrics.csv")
    assert f"model's is {reported(rows[rows.stage == 'fp16'])['value'].mean():.3f}." in text
    squares = reported(rows[rows.stage == "post_pv"]).assign(square=lambda each: each["stderr"] ** 2)
    errors = squares.groupby(["init", "seed"])["square"].sum().map(math.sqrt) / len(TASKS)
    assert f"standard error of {errors.max():.3f}: a difference of a point could not be seen." in text


def check_change(ratio: str, label: str, other: str, init: str, stage: str, dataset: str) -> None:
    """Perplexity in one case over that in another, seed by seed."""
    changed, before = (perplexities(each, stage).loc[dataset] for each in (label, other))
    changed = changed.rename(columns={"oaem_exact": "oaem"})
    check_ratio(pd.DataFrame({"greedy": changed[init], "oaem": before[init]}), ratio)


def test_what_the_readme_says_of_tasks_is_the_configurations() -> None:
    tasks = load(ROOT / "config/evidence.yaml").evaluation.downstream
    assert set(tasks.tasks) == set(TASKS)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"Six zero-shot tasks of {tasks.limit} items do not tell the two apart" in readme
    assert len(TASKS) == 6
