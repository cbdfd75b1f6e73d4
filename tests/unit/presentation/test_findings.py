"""docs/findings.md: what is committed is what the archive gives, and its numbers are recomputed here another way."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest
from scipy import stats

from oaem.config.geometry import Geometry
from oaem.presentation.figures.drawing import save
from oaem.presentation.findings import (
    CHANGED,
    EVIDENCE,
    EXACTLY,
    INITS,
    ON_TARGETS,
    ORIGINAL,
    REPEATED,
    SMALL_SWEEP,
    SWEEP,
    SWEPT,
    TASKED,
    TEXTS,
    figures,
    page,
)
from oaem.presentation.view import TASK_METRICS
from tests.unit.presentation.findings_page import (
    ARCHIVE,
    LAYERS,
    PAGE,
    RATIO,
    STAGES,
    TEMPLATE,
    bullet,
    check_mean,
    check_pair,
    check_ratio,
    close,
    measured,
    perplexities,
)
from tests.unit.presentation.paper_metrics import PAPER, ROOT


@pytest.mark.slow
def test_the_page_and_its_figures_are_those_of_the_archive(tmp_path) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(TEMPLATE, ARCHIVE), "run python -m oaem.presentation.findings"
    drawn = figures(ROOT)
    assert {f"{name}.svg" for name in drawn} == {path.name for path in (ROOT / "docs/figures").iterdir()}
    for name, figure in drawn.items():
        save(figure, tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").read_bytes() == (ROOT / f"docs/figures/{name}.svg").read_bytes()


def test_every_row_of_the_table_is_the_archives() -> None:
    found = re.findall(
        r"^\| ([ABC]) \| (.* PV) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.M
    )
    assert len(found) == 18
    for label, stage, text, greedy, oaem, ratio, better in found:
        dataset = next(key for key, name in TEXTS.items() if name == text)
        runs = perplexities(label, STAGES[stage]).loc[dataset]
        assert len(runs) == 3
        check_pair(runs, greedy, oaem, ratio)
        assert better == f"{(runs.greedy > runs.oaem).sum()} of 3"


def test_every_row_of_the_sweep_is_the_archives() -> None:
    found = re.findall(r"^\| (\d+ bit over \d+) \|" + r" ([^|]*?) \|" * 7 + "$", PAGE.read_text(), re.M)
    swept = [case.label for case in SWEEP if len(perplexities(case.label, "pre_pv").dropna())]
    assert [(label, text) for label, text, *_ in found] == [(label, text) for label in swept for text in TEXTS.values()]
    for label, text, *cells in found:
        dataset = next(key for key, name in TEXTS.items() if name == text)
        for stage, shown in (("pre_pv", cells[:3]), ("post_pv", cells[3:])):
            pairs = perplexities(label, stage).dropna()
            if len(pairs):
                check_pair(pairs.loc[dataset], *shown)
            else:
                assert shown == ["not run"] * 3


def test_every_geometry_of_the_sweep_is_the_archives() -> None:
    found = re.findall(r"^\| (\d+ bit over \d+) \|" + r" ([^|]*?) \|" * 4 + "$", PAGE.read_text(), re.M)
    assert [label for label, *_ in found] == [c.label for c in SWEEP if len(perplexities(c.label, "pre_pv").dropna())]
    for label, bits, rho, *errors in found:
        geometry = Geometry.parse(next(case.geometry for case in SWEEP if case.label == label))
        stored = sum(rows * columns * geometry.true_bits(rows, columns) for rows, columns in LAYERS)
        assert close(bits, stored / sum(rows * columns for rows, columns in LAYERS))
        ends = [geometry.rho(192, 576), geometry.rho(1536, 576)]
        assert [float(end) for end in rho.split(" to ")] == [pytest.approx(end, rel=0.05) for end in ends]
        frame = measured(label)
        for init, shown in zip(("greedy", "oaem"), errors, strict=True):
            assert close(shown, frame[(frame.metric == "relative_error") & (frame.init == init)]["value"].mean())


def test_every_row_of_original_inputs_is_the_archives() -> None:
    found = re.findall(r"^\| (greedy|OA-EM) \|" + r" ([^|]*?) \|" * 6 + "$", PAGE.read_text(), re.M)
    assert len(found) == 12
    lower = 0
    for name, stage, text, sequential, original, ratio, better in found:
        init = next(key for key, shown in INITS.items() if shown == name)
        dataset = next(key for key, shown in TEXTS.items() if shown == text)
        first, second = (perplexities(label, STAGES[stage]).loc[dataset][init] for label in ("B", ORIGINAL.label))
        assert list(first.index) == list(second.index) == [42, 43, 44]
        check_mean(sequential, first)
        check_mean(original, second)
        logs = first.map(math.log), second.map(math.log)
        interval = stats.ttest_rel(*logs).confidence_interval(0.95)
        expected = [(logs[0] - logs[1]).mean(), interval.low, interval.high]
        for shown, value in zip(re.findall(r"[\d.]+", ratio), expected, strict=True):
            assert close(shown, math.exp(value))
        assert better == f"{(first > second).sum()} of 3"
        lower += expected[0] > 0
        assert expected[0] > -0.01, "or it would not be the same to a hundredth"
    assert lower == 11, "lower in every row but one"


def test_what_is_said_of_two_makings_is_the_archives() -> None:
    text = bullet("Made again")
    ends = re.findall(r"([\d.]+) to ([\d.]+) %", text)
    ratios = re.findall(RATIO, text)
    assert (len(ends), len(ratios)) == (2, 4)
    for place, stage in enumerate(STAGES.values()):
        first, again = (perplexities(label, stage).loc["boolq"] for label in ("B", REPEATED.label))
        apart = (first / again).stack()
        found = 100 * (pd.concat([apart, 1 / apart], axis=1).max(axis=1) - 1)
        assert close(ends[place][0], found.min()) and close(ends[place][1], found.max())
        check_ratio(again, ratios[place])
        averaged = (first.map(math.log) + again.map(math.log)).map(lambda log: math.exp(log / 2))
        check_ratio(averaged, ratios[2 + place])
        assert (again.greedy > again.oaem).all()
    assert "3 of 3 and 3 of 3 seeds, but equality within the intervals" in text
    assert all(float(ratio.split("[")[1].split(",")[0]) < 1 for ratio in ratios[:2]), "equality within"


def test_what_more_of_oaem_does_is_the_archives() -> None:
    shown = re.findall(RATIO, bullet("Does more of OA-EM help more?"))
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
    assert sum(first) > sum(again), "more of these intervals leave 1 out"


def test_what_is_said_of_exact_codebooks_is_the_archives() -> None:
    shown = iter(re.findall(RATIO, bullet("Adam or exact?")))
    for init in INITS:
        for stage in STAGES.values():
            for dataset in TEXTS:
                ratio = next(shown)
                check_change(ratio, EXACTLY.label, REPEATED.label, init, stage, dataset)
                low, high = ends(ratio)
                if init == "oaem":
                    assert low < 1 < high, "on none beyond doubt"
                elif stage == "post_pv":
                    assert high < 1, "after PV-tuning on every text"
    for dataset in ("boolq", "wikihow"):
        for stage in STAGES.values():
            ratio = next(shown)
            check_ratio(perplexities(EXACTLY.label, stage).loc[dataset], ratio)
            low, high = ends(ratio)
            assert low > 1 if dataset == "boolq" else low < 1 < high, "ahead far, and no lead is seen in-domain"
    for stage in STAGES.values():
        for dataset in TEXTS:
            ratio = next(shown)
            exact, before = (
                perplexities(label, stage).loc[dataset].eval("greedy / oaem")
                for label in (EXACTLY.label, REPEATED.label)
            )
            check_ratio(pd.DataFrame({"greedy": exact, "oaem": before}), ratio)
            assert float(ratio.split()[0]) < 1, "by the mean smaller on each text"
    assert next(shown, None) is None


def decided(label: str, other: str, stage: str, dataset: str) -> bool:
    """Whether the interval of OA-EM's perplexity in one case over that in another leaves 1 out."""
    changed, before = (perplexities(each, stage).loc[dataset] for each in (label, other))
    logs = changed.rename(columns={"oaem_exact": "oaem"})["oaem"].map(math.log) - before["oaem"].map(math.log)
    return bool(stats.ttest_1samp(logs, 0).pvalue < 0.05)


def test_what_is_said_of_targets_is_the_archives() -> None:
    shown = re.findall(RATIO, bullet("Before PV-tuning it is the targets."))
    places = [("B", init, "pre_pv", "boolq") for init in INITS]
    places += [(ORIGINAL.label, init, "pre_pv", dataset) for dataset in ("boolq", "wikihow") for init in INITS]
    before = len(places)
    places += [(other, init, "post_pv", "boolq") for other in ("B", ORIGINAL.label) for init in INITS]
    for ratio, (other, init, stage, dataset) in zip(shown, places, strict=False):
        check_change(ratio, ON_TARGETS.label, other, init, stage, dataset)
    assert all(float(ratio.split()[0]) < 1 for ratio in shown[:before]), "before PV-tuning it is"
    for ratio, stage in zip(shown[len(places) :], STAGES.values(), strict=True):
        check_ratio(perplexities(ON_TARGETS.label, stage).loc["boolq"], ratio)
        assert ends(ratio)[0] > 1, "the advantage stays"
    means = [perplexities(each, "post_pv").groupby("dataset").mean() for each in (ORIGINAL.label, ON_TARGETS.label)]
    assert (means[0] < means[1]).all(axis=None), "after it original inputs have the lower mean on every text"


def test_what_is_said_of_tasks_is_the_archives() -> None:
    text = bullet("Zero-shot tasks do not tell the initialisations apart.")
    means = re.findall(r"[\d.]+ ± [\d.]+", text)
    gains = re.findall(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]", text)
    for place, label in enumerate(("A", REPEATED.label)):
        rows = reported(measured(label).query("stage == 'post_pv'"))
        assert (rows.groupby(["init", "seed"]).size() == len(TASK_METRICS)).all()
        accuracies = rows.groupby(["seed", "init"])["value"].mean().unstack()
        for init, shown in zip(INITS, means[2 * place :], strict=False):
            check_mean(shown, accuracies[init])
        interval = stats.ttest_rel(accuracies["oaem"], accuracies["greedy"]).confidence_interval(0.95)
        expected = [(accuracies["oaem"] - accuracies["greedy"]).mean(), interval.low, interval.high]
        numbers = re.findall(r"-?[\d.]+", gains[place])
        assert all(close(each, value) for each, value in zip(numbers, expected, strict=True))
        assert interval.low < 0 < interval.high, "they do not tell"
    rows = pd.read_csv(ARCHIVE / TASKED / "metrics.csv")
    assert f"model's is {reported(rows[rows.stage == 'fp16'])['value'].mean():.3f}." in text
    squares = reported(rows[rows.stage == "post_pv"]).assign(square=lambda each: each["stderr"] ** 2)
    errors = squares.groupby(["init", "seed"])["square"].sum().map(math.sqrt) / len(TASK_METRICS)
    assert f"standard error of {errors.max():.3f}: a difference of a point could not be seen." in text


def reported(rows: pd.DataFrame) -> pd.DataFrame:
    """The accuracies of the six tasks that the paper reports."""
    return pd.concat(
        rows[(rows.dataset == task) & (rows.metric == metric)] for task, (_, metric) in TASK_METRICS.items()
    )


def check_change(ratio: str, label: str, other: str, init: str, stage: str, dataset: str) -> None:
    """Perplexity in one case over that in another, seed by seed."""
    changed, before = (perplexities(each, stage).loc[dataset] for each in (label, other))
    changed = changed.rename(columns={"oaem_exact": "oaem"})
    check_ratio(pd.DataFrame({"greedy": changed[init], "oaem": before[init]}), ratio)


def ends(ratio: str) -> tuple[float, float]:
    """Those of a printed interval."""
    low, high = map(float, re.findall(r"[\d.]+", ratio)[1:])
    return low, high


def test_what_two_archives_measured_is_the_same() -> None:
    """The runs of one case may lie in both: then one stands for the other."""
    first, second = (pd.read_csv(ARCHIVE / name / "metrics.csv") for name in (EVIDENCE, SWEPT))
    key = ["geometry", "init", "beam_width", "max_epochs", "seed", "stage", "dataset", "metric"]
    both = first.merge(second, on=key, suffixes=("", "_again"))
    both = both[both["metric"] != "seconds"]
    pd.testing.assert_series_equal(both["value"], both["value_again"], check_names=False, check_exact=True)


def test_what_the_text_says_in_words() -> None:
    for label, better in (("A", 0), ("B", 9), ("C", 9)):
        runs = perplexities(label, "pre_pv")
        assert (runs.oaem < runs.greedy).sum() == better
    for label in ("B", "C"):
        for stage in STAGES.values():
            ratio = perplexities(label, stage).eval("greedy / oaem")
            assert (ratio["boolq"] > ratio["wikihow"]).all(), "larger with each seed"
    small = perplexities("C", "pre_pv").eval("greedy / oaem")
    for label in ("6 bit over 6", "4 bit over 4"):
        full = perplexities(label, "pre_pv").dropna().eval("greedy / oaem")
        assert (small.reindex(full.index) > full).all(), "greedy is further behind with the smaller search"
    table = pd.read_csv(PAPER / "tables/table6.csv").set_index("init")["wiki2"]
    assert f"{table['Baseline']:.2f} against {table['+ OA-EM']:.2f}" in PAGE.read_text(encoding="utf-8")


def test_what_the_page_says_of_the_choice_of_an_epoch() -> None:
    stages = ("post_pv", "post_pv_validation", "post_pv_last")
    far = pd.concat(
        [pd.concat([perplexities(label, stage).loc["boolq"].stack() for stage in stages], axis=1) for label in "ABC"]
    )
    spread = far.max(axis=1) / far.min(axis=1)
    same, runs, most = re.findall(
        r"same state in (\d+) of (\d+) runs,\n.*differs by ([\d.]+) % at most", PAGE.read_text()
    )[0]
    assert (int(same), int(runs)) == ((spread == 1).sum(), len(spread))
    assert close(most, 100 * (spread.max() - 1))


def test_no_measured_number_is_written_by_hand() -> None:
    """Decimals outside calls: what the paper prints, the quantile and its consequence, the paper's own number."""
    template = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", "", TEMPLATE.read_text(encoding="utf-8"), flags=re.S)
    assert set(re.findall(r"\d+\.\d+", template)) == {"2604.08118", "4.30", "2.5", "9.52", "8.87", "12.71"}


def test_what_the_readme_quotes_is_on_the_page() -> None:
    text = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("## What three seeds say")[2].partition("\n## ")[0]
    )
    page_text, quoted = PAGE.read_text(encoding="utf-8"), re.findall(r"[\d.]+ ± [\d.]+", text)
    assert len(quoted) == 18
    assert not [each for each in quoted if each not in page_text]
    cases = [("A", "pre_pv"), ("A", "post_pv"), ("B", "pre_pv"), ("B", "post_pv"), ("C", "pre_pv"), ("C", "post_pv")]
    ratios = re.findall(r"\| (\d\.\d\d) \|$", text, re.M)
    swept = [(f"{bits} bit over {bits}", "pre_pv") for bits in (12, 8, 6, 4, 3)]
    swept += [(f"{bits} bit over {bits}", "post_pv") for bits in (12, 8, 6, 4, 3)]
    swept += [(case.label, "pre_pv") for case in SMALL_SWEEP]
    sentence = re.findall(r"(?<!± )\b[01]\.\d\d\b(?! to)", text.rpartition("|")[2].partition("**With other")[0])
    for shown, (label, stage) in zip([*ratios, *sentence], [*cases, *swept], strict=True):
        logs = perplexities(label, stage).dropna().loc["boolq"].map(math.log)
        assert close(shown, math.exp((logs["greedy"] - logs["oaem"]).mean())), (label, stage)
    percent = re.findall(r"some (\d) and (\d) % more for ten times the rho", text)[0]
    slopes = re.findall(RATIO, bullet("The order of the three cases is the paper's"))[2:4]
    assert [f"{100 * (float(slope.split()[0]) - 1):.0f}" for slope in slopes] == list(percent)
