"""The page's section "Across models": its tables and sentences, recomputed from the published archives."""

from __future__ import annotations

import itertools
import math
import re

import pandas as pd
import pytest
from scipy import stats

from oaem.config.geometry import Geometry
from oaem.config.schema import Config, load
from oaem.presentation.findings import STAGES, TEXTS
from oaem.presentation.models_compared import AT_THREE, BUDGETS, GEOMETRY, MODELS, Budgets
from tests.unit.presentation.findings_page import PAGE, check_mean, check_pair, close, folders, of_kind
from tests.unit.presentation.findings_page import reported as of_tasks
from tests.unit.presentation.paper_metrics import ROOT

KEY = ["model", "init", "seed", "stage", "dataset", "metric"]
CELL = r" ([^|]*?) \|"
PLACES = [(budgets, model) for budgets in BUDGETS for model in budgets.models]


def table(name: str, budgets: Budgets, model: str, key: list[str] = KEY) -> pd.DataFrame:
    """What the archives have of a model: each row from the first kind that has it, unquantised ones among them."""
    found = [rows for kind in budgets.archives if len(rows := of_kind(kind, name))]
    if not found:
        return pd.DataFrame(columns=[*key, "geometry", "value"])
    rows = pd.concat(found)
    ours = (
        (rows.geometry == budgets.geometry)
        & (rows.beam_width == budgets.search[0])
        & (rows.max_epochs == budgets.search[1])
    )
    return rows[(ours | rows.geometry.isna()) & (rows.model == model)].drop_duplicates(key)


def pairs(budgets: Budgets, model: str, stage: str, text: str) -> pd.DataFrame:
    """Perplexities: rows the seeds, columns the initialisations."""
    rows = table("metrics", budgets, model)
    rows = rows[(rows.metric == "perplexity") & (rows.stage == stage) & (rows.dataset == text)]
    return rows.pivot(index="seed", columns="init", values="value").reindex(columns=["greedy", "oaem"]).dropna()


def layers(budgets: Budgets, model: str) -> pd.DataFrame:
    """Errors on the unquantised model's inputs: rows the seeds and layers, columns the initialisations."""
    rows = table("directions", budgets, model, ["model", "init", "seed", "block", "linear"])
    if rows.empty:
        return pd.DataFrame(columns=["greedy", "oaem"])
    return rows.pivot(index=["seed", "block", "linear"], columns="init", values="relative_error").dropna()


def section() -> str:
    return PAGE.read_text(encoding="utf-8").partition("## Across models\n")[2].partition("\n## ")[0]


def rows_with(count: int) -> list[tuple[str, ...]]:
    """The rows of the table whose rows have so many cells, without its head."""
    names = "|".join(budgets.name for budgets in BUDGETS)
    return re.findall(rf"^\| ({names}) \|" + CELL * (count - 1) + "$", section(), re.M)


def place(name: str, label: str) -> tuple[Budgets, str]:
    """The budgets and the model of a row."""
    return next(each for each in BUDGETS if each.name == name), next(m for m, shown in MODELS.items() if shown == label)


def seeds(numbers: pd.Index) -> str:
    return ", ".join(str(int(seed)) for seed in sorted(numbers)) or "not run"


def reported(budgets: Budgets, model: str) -> pd.DataFrame:
    """The accuracies of the six tasks that the paper reports; the unquantised model's are of seed 0."""
    rows = table("metrics", budgets, model)
    rows = rows[rows.stage.isin(["fp16", "post_pv"])].fillna({"seed": 0, "init": "unquantised"})
    return of_tasks(rows)


def accuracies(budgets: Budgets, model: str) -> pd.DataFrame:
    """Means over them: rows the seeds, columns the initialisations."""
    rows = reported(budgets, model)
    return rows.groupby(["seed", "init"])["value"].mean().unstack()


def test_what_was_run_is_the_archives() -> None:
    found = rows_with(7)
    assert [(name, label) for name, label, *_ in found] == [(budgets.name, MODELS[model]) for budgets, model in PLACES]
    for name, label, before, after, tasks, inquired, archives in found:
        budgets, model = place(name, label)
        assert before == seeds(pairs(budgets, model, "pre_pv", "boolq").index)
        assert after == seeds(pairs(budgets, model, "post_pv", "boolq").index)
        assert inquired == seeds(
            layers(budgets, model).index.unique(0) if len(layers(budgets, model)) else pd.Index([])
        )
        means = accuracies(budgets, model).reindex(columns=["greedy", "oaem"]).dropna()
        assert tasks == seeds(means.index)
        if (name, label) == ("paper", MODELS["smollm2-135m"]):
            assert (before, after, tasks, inquired) == ("42, 43, 44",) * 4, "of two folders of the evidence made again"
        paths = [path for kind in budgets.archives for path in folders(kind)]
        holding = {path.name for path in paths if model in set(pd.read_csv(path / "metrics.csv")["model"])}
        assert set(re.findall(r"`archive/(.*?)`", archives)) <= holding
        assert bool(holding) == (archives != "not run")


def test_every_comparison_is_the_archives() -> None:
    found = rows_with(10)
    expected = [
        (budgets.name, MODELS[model], words, text)
        for budgets, model in PLACES
        for stage, words in STAGES.items()
        if len(pairs(budgets, model, stage, "boolq"))
        for text in TEXTS.values()
    ]
    assert [row[:4] for row in found] == expected
    assert len(found) >= 12, "two models at the paper's budgets"
    for name, label, words, text, count, unquantised, greedy, oaem, ratio, better in found:
        budgets, model = place(name, label)
        stage = next(key for key, shown in STAGES.items() if shown == words)
        dataset = next(key for key, shown in TEXTS.items() if shown == text)
        runs = pairs(budgets, model, stage, dataset)
        check_pair(runs, greedy, oaem, ratio)
        assert count == str(len(runs))
        assert better == f"{(runs.greedy > runs.oaem).sum()} of {len(runs)}"
        rows = table("metrics", budgets, model).query("stage == 'fp16' and metric == 'perplexity'")
        check_mean(unquantised, rows[rows.dataset == dataset]["value"])


def test_every_comparison_at_three_bits_is_the_archives() -> None:
    labels = "|".join(MODELS.values())
    found = re.findall(rf"^\| ({labels}) \|" + CELL * 8 + "$", section(), re.M)
    models = [model for model in AT_THREE.models if len(pairs(AT_THREE, model, "pre_pv", "boolq"))]
    assert models, "of one model at least"
    assert [row[0] for row in found[:: len(TEXTS)]] == [
        MODELS[model] for model in models for stage in STAGES if len(pairs(AT_THREE, model, stage, "boolq"))
    ]
    for label, _, words, text, numbers, greedy, oaem, ratio, better in found:
        model = next(key for key, shown in MODELS.items() if shown == label)
        stage = next(key for key, shown in STAGES.items() if shown == words)
        runs = pairs(AT_THREE, model, stage, next(key for key, shown in TEXTS.items() if shown == text))
        assert numbers == seeds(runs.index)
        check_pair(runs, greedy, oaem, ratio)
        assert better == f"{(runs.greedy > runs.oaem).sum()} of {len(runs)}"


def test_every_models_layers_are_the_archives() -> None:
    # The rows of the steps have eight cells, too; their second one is a stage.
    found = [row for row in rows_with(8) if row[1] in MODELS.values()]
    assert len(found) == sum(len(pairs(budgets, model, "pre_pv", "boolq")) > 0 for budgets, model in PLACES)
    shapes = load(ROOT / "config/three-models.yaml").models
    geometry = Geometry.parse(GEOMETRY)
    for name, label, rho, bits, greedy, oaem, ratio, lower in found:
        budgets, model = place(name, label)
        shape = shapes[model].shape
        sizes = (576, 1536, 576, 192)  # the embedded model's, which no configuration repeats
        if shape is not None:
            heads = [heads * shape.head_dim for heads in (shape.num_attention_heads, shape.num_key_value_heads)]
            sizes = (shape.hidden_size, shape.intermediate_size, *heads)
        hidden, mlp, queries, keys = sizes
        linears = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
        linears += [(mlp, hidden), (mlp, hidden), (hidden, mlp)]
        ratios = [geometry.rho(*size) for size in linears]
        assert [float(end) for end in rho.split(" to ")] == [
            pytest.approx(end, rel=0.05) for end in (min(ratios), max(ratios))
        ]
        stored = sum(rows * columns * geometry.true_bits(rows, columns) for rows, columns in linears)
        assert close(bits, stored / sum(rows * columns for rows, columns in linears))
        errors = table("metrics", budgets, model).query("metric == 'relative_error'").groupby("init")["value"].mean()
        assert close(greedy, errors["greedy"])
        assert close(oaem, errors["oaem"])
        measured = layers(budgets, model)
        if measured.empty:
            assert (ratio, lower) == ("not run", "not run")
            continue
        assert lower == f"{(measured.oaem < measured.greedy).sum()} of {len(measured)}"
        logs = (measured.greedy / measured.oaem).astype(float).map(math.log).groupby("seed").mean()
        ends = list(stats.ttest_1samp(logs, 0).confidence_interval(0.95)) if len(logs) > 1 else []
        shown = re.findall(r"[\d.]+", ratio)
        assert all(close(each, math.exp(log)) for each, log in zip(shown, [logs.mean(), *ends], strict=True))


def test_tasks_are_the_archives() -> None:
    for name, label, _, unquantised, greedy, oaem in rows_with(6):
        means = accuracies(*place(name, label))
        check_mean(greedy, means[["greedy", "oaem"]].dropna()["greedy"])
        check_mean(oaem, means[["greedy", "oaem"]].dropna()["oaem"])
        assert close(unquantised, means["unquantised"].loc[0])


def test_what_is_said_of_tasks_is_the_archives() -> None:
    near, errors = 0, []
    rows = rows_with(6)
    for name, label, *_ in rows:
        means = accuracies(*place(name, label))[["greedy", "oaem"]].dropna().mean()
        found = reported(*place(name, label)).query("stage == 'post_pv'")
        squares = found.assign(square=found["stderr"] ** 2).groupby(["init", "seed"])["square"].sum()
        errors.append(math.sqrt(squares.max()) / 6)
        near += abs(means["greedy"] - means["oaem"]) < errors[-1]
    if rows:
        assert f"has a standard error of up to {max(errors):.3f}:" in section()
        assert f"less than one such standard error in {near} of {len(rows)}" in section()


def mean_ratio(budgets: Budgets, model: str, stage: str, text: str) -> float:
    """Geometric mean over seeds."""
    return float(stats.gmean(pairs(budgets, model, stage, text).eval("greedy / oaem")))


def test_what_is_said_of_each_model_is_the_archives() -> None:
    text = " ".join(section().split())
    said = re.findall(
        r"\*\*With ([^*]*?) OA-EM ([^*]*?)\*\*: its mean perplexity is lower in (\d+) of (\d+) comparisons?, "
        r"with every seed in (\d+); pair by pair it is lower in (\d+) of (\d+)\.",
        text,
    )
    assert {label for label, *_ in said} >= {"SmolLM2 135M", "Qwen2.5-Coder 0.5B"}
    winners, tuned = 0, []
    for label, verdict, *numbers in said:
        runs = [
            pairs(budgets, model, stage, dataset)
            for budgets, model in PLACES
            if MODELS[model] == label
            for stage in STAGES
            for dataset in TEXTS
        ]
        ratios = [each.eval("greedy / oaem") for each in runs if len(each)]
        won = sum(stats.gmean(each) > 1 for each in ratios)
        every = sum((each > 1).all() for each in ratios)
        single = pd.concat(ratios)
        assert [int(each) for each in numbers] == [won, len(ratios), every, (single > 1).sum(), len(single)]
        winners += won == len(ratios)
        after = [
            pairs(BUDGETS[0], model, "post_pv", dataset)
            for model in MODELS
            if MODELS[model] == label
            for dataset in TEXTS
        ]
        tuned += [label] * all(stats.gmean(each.eval("greedy / oaem")) > 1 for each in after)
        words = {0: "does not beat greedy", len(ratios): "beats greedy"}
        assert verdict == words.get(won, "beats greedy in a part of the comparisons")
    answer = "With every one that was measured" if winners == len(said) else "No"
    lower = f"its mean perplexity is the lower one in all comparisons with {winners} of {len(said)} models,"
    lower += f" in all of those after PV-tuning with {len(tuned)} ({', '.join(tuned)})."
    assert f"**Does OA-EM beat greedy with every model?** {answer}: {lower}" in text


def test_what_is_said_of_rho_is_the_archives() -> None:
    grown, of = 0, 0
    for budgets in BUDGETS:
        for stage in STAGES:
            known = [model for model in budgets.models if len(pairs(budgets, model, stage, "boolq"))]
            rho = {m: table("metrics", budgets, m).query("metric == 'rho'")["value"].mean() for m in known}
            if len(known) > 1:
                first, last = min(known, key=rho.__getitem__), max(known, key=rho.__getitem__)
                ends = [[mean_ratio(budgets, model, stage, text) for text in TEXTS] for model in (first, last)]
                grown += sum(late > early for early, late in zip(*ends, strict=True))
                of += len(TEXTS)
    text = " ".join(section().split())
    assert f"than with that of the smallest in {grown} of {of} comparisons." in text
    assert ("So rho alone does not tell" in text) == (grown < of)
    assert ("A larger rho does not go with a larger advantage**" in text) == (grown == 0)


def test_the_steps_from_model_to_model_are_the_archives() -> None:
    found = [row for row in rows_with(8) if row[1] in STAGES.values()]
    assert found
    for name, words, text, labels, steps, above, below, whole in found:
        budgets = next(each for each in BUDGETS if each.name == name)
        stage = next(key for key, shown in STAGES.items() if shown == words)
        dataset = next(key for key, shown in TEXTS.items() if shown == text)
        models = [next(m for m, shown in MODELS.items() if shown == label) for label in labels.split(", ")]
        ratios = [pairs(budgets, model, stage, dataset).eval("greedy / oaem") for model in models]
        means = [stats.gmean(each) for each in ratios]
        grown = sum(late > early for early, late in itertools.pairwise(means))
        assert steps.startswith(f"{grown} of {len(models) - 1} (")
        known = [(MODELS[m], each.map(math.log)) for m, each in zip(models, ratios, strict=True) if len(each) > 1]
        ends = {label: stats.ttest_1samp(logs, 0).confidence_interval(0.95) for label, logs in known}
        assert above == (", ".join(label for label, each in ends.items() if each.low > 0) or "none")
        assert below == (", ".join(label for label, each in ends.items() if each.high < 0) or "none")
        logs = (ratios[-1] / ratios[0]).dropna().map(math.log)
        expected = [logs.mean()]
        expected += list(stats.ttest_1samp(logs, 0).confidence_interval(0.95)) if len(logs) > 1 else []
        shown = re.findall(r"[\d.]+", whole)
        assert all(close(each, math.exp(log)) for each, log in zip(shown, expected, strict=True))


def test_models_and_budgets_are_the_configurations() -> None:
    models = load(ROOT / "config/three-models.yaml")
    assert {name: model.label for name, model in models.models.items()} == MODELS
    assert all(model.source == "embedded" or "4-bit" in str(model.note) for model in models.models.values())
    families = load(ROOT / "config/three-models.yaml", ROOT / "config/config.yaml", ROOT / "config/families.yaml")
    for budgets, config in zip(BUDGETS, (models, families), strict=True):
        runs = [run for run in config.runs() if run.geometry.name == GEOMETRY]
        assert {(run.model, run.beam_width, run.max_epochs) for run in runs} == {
            (model, *budgets.search) for model in budgets.models
        }
    same_budgets(models, load(ROOT / "config/evidence.yaml"))
    same_budgets(families, load(ROOT / "config/config.yaml", ROOT / "config/inquiry.yaml"))
    assert families.pv is None


def same_budgets(one: Config, other: Config) -> None:
    """The page says that a set of budgets is B's, or D's."""
    assert one.quantization == other.quantization
    assert one.evaluation.perplexity == other.evaluation.perplexity
