"""The report: self-contained, complete, the same bytes from the same numbers; and the summary for a terminal."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser

import pandas as pd
import pytest

from oaem.config import schema as configuration
from oaem.measurements.table import COLUMNS
from oaem.presentation.claims import claims
from oaem.presentation.figures.figures import FIGURES
from oaem.presentation.report import render, summary
from oaem.presentation.tables.build import EXTRA, TABLES
from tests.unit.presentation.paper_metrics import PAPER, invented, load, values

EMPTY = pd.DataFrame(columns=COLUMNS)
VOID = {"meta", "br", "path", "use", "rect", "stop", "image", "line", "circle"}


class Structure(HTMLParser):
    """Ids, links, and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for key, value in attributes:
            if key == "id" and value:
                self.ids.append(value)
            if key in ("href", "xlink:href", "src") and value:
                self.targets.append(value)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@cache
def page(name: str) -> str:
    """The report of a configuration with all its metrics, or of the paper's grid without any."""
    if name == "empty":
        return render(EMPTY, load("paper.yaml"), PAPER)
    return render(invented(load(name)), load(name), PAPER, {"project": "0.1.0"})


@pytest.mark.parametrize("name", ["config.yaml", "paper.yaml", "empty"])
def test_one_whole_file(name: str) -> None:
    structure = Structure()
    structure.feed(page(name))
    assert structure.open == []
    assert len(structure.ids) == len(set(structure.ids))
    assert all(target.startswith("#") and target[1:] in structure.ids for target in structure.targets)
    assert not re.search(r"<(script|link|img)\b|@import|url\((?!#)", page(name))
    tables = {*TABLES, *EXTRA} - {"headline", "rho_sweep"}
    figures = {f"figure-{figure}" for figure in FIGURES} - {"figure-rho_sweep"}
    statements = {f"claim-{claim.id}" for claim in claims.load(PAPER)}
    assert tables | figures | statements | {"headline"} <= set(structure.ids)
    expected = {"config.yaml": "Wikipedia", "paper.yaml": "352.39", "empty": "not run"}
    assert expected[name] in page(name)


def test_provenance_is_what_the_measurements_say() -> None:
    assert "2.13.0" in page("config.yaml").split('id="provenance"')[1]
    assert "<dt>archives" not in page("config.yaml")


@pytest.mark.parametrize("folders", ["archive/a", ["archive/a", "archive/b"]])
def test_provenance_names_every_archive(folders: str | list[str]) -> None:
    config = configuration.parse({**values("config.yaml"), "from_archive": folders})
    named = ", ".join([folders] if isinstance(folders, str) else folders)
    assert f"<dt>archives</dt><dd>{named}</dd>" in render(EMPTY, config, PAPER)


def test_same_numbers_same_bytes() -> None:
    config = load("config.yaml")
    assert render(invented(config), config, PAPER, {"project": "0.1.0"}) == page("config.yaml")


def test_names_cannot_break_the_page() -> None:
    changed = values("config.yaml")
    changed["title"] = "<script>alert(1)</script>"
    changed["models"]["smollm2-135m"]["label"] = "<b>|bold"
    config = configuration.parse(changed)
    page = render(invented(config), config, PAPER)
    assert "<script>" not in page
    assert "&lt;b&gt;|bold" in page


def test_the_summary_names_points_texts_and_places() -> None:
    config = load("embedded-ten-runs.yaml")
    metrics = invented(config)
    text = summary(metrics, config)
    assert text.count("b=2, e=2") == 4, "at two rates, before and after PV-tuning"
    assert text.count("b=4, e=2") == 2, "at one rate, before and after PV-tuning"
    for word in ("WikiHow (in-domain)", "LAMBADA (near)", "Wikipedia (far)", "results/tables", "results/report.html"):
        assert word in text
    texts, stages = metrics.dataset.isin(config.evaluation.perplexity), metrics.stage.isin(["pre_pv", "post_pv"])
    paired = metrics[(metrics.metric == "perplexity") & texts & stages].pivot(
        index=["geometry", "beam_width", "max_epochs", "stage", "dataset"], columns="init", values="value"
    )
    assert f"in {(paired.oaem < paired.greedy).sum()} of {5 * 2 * 3} comparisons" in text
    assert "oaem_exact" not in text
    assert "No pair" in summary(EMPTY, config)


def test_other_initialisations_stand_in_the_headline() -> None:
    changed = values("config.yaml")
    changed["grid"][0]["init"].append("oaem_exact")
    config = configuration.parse(changed)
    assert "oaem_exact" in summary(invented(config), config)


def test_the_page_opens_with_what_was_found() -> None:
    opening = page("config.yaml").split('id="opening"')[1].split('id="claims"')[0]
    assert opening.count("<li>") == 3
    assert opening.count("<svg") == 2, "before and after PV-tuning"
    assert "greedy / OA-EM is" in opening
    assert "No pair of greedy and OA-EM" in page("empty")


@pytest.mark.parametrize(("seeds", "said"), [([42], "with one seed"), ([42, 43, 44], "3 seeds), and the interval")])
def test_sentences_say_how_many_seeds(seeds: list[int], said: str) -> None:
    changed = values("config.yaml")
    for part in changed["grid"]:
        part["seeds"] = seeds
    config = configuration.parse(changed)
    text = render(invented(config), config, PAPER)
    assert text.split('id="claims"')[0].count(said) == 3
    assert ("one seed (42)" in text) is (len(seeds) == 1)


def test_a_sentence_goes_from_model_to_model() -> None:
    """At the last stage that two models have, and only where a pair of runs is."""
    config = load("three-models.yaml")
    metrics = invented(config)
    at_first_rate = (metrics["geometry"] == "2bpp-2x8g8") & (metrics["metric"] == "perplexity")
    far = at_first_rate & (metrics["dataset"] == "boolq")
    for model, greedy, ours in (("smollm2-135m", 60, 50), ("qwen2.5-coder-1.5b", 40, 50)):
        for init, value in (("greedy", greedy), ("oaem", ours)):
            metrics.loc[far & (metrics["model"] == model) & (metrics["init"] == init), "value"] = value
    others = metrics["model"].isin(["qwen2.5-coder-0.5b", "gemma-3-270m"]) & metrics["stage"].str.startswith("post_pv")
    opening = render(metrics[~others], config, PAPER).split('id="claims"')[0]
    assert (
        "From model to model, at 2 bpp, after PV-tuning, on Wikipedia (far), OA-EM is better with 1 of 2 models: "
        "greedy / OA-EM is 1.2 with SmolLM2 135M, 0.8 with Qwen2.5-Coder 1.5B." in opening
    )
    assert "SmolLM2 135M at 3 bpp, after PV-tuning," in opening


def test_sentences_tell_geometries_of_one_rate_apart() -> None:
    config = load("rho-sweep.yaml")
    opening = render(invented(config), config, PAPER).split('id="claims"')[0]
    assert opening.count("At 2 bpp with 2 codebooks of 8 bit over groups of 8, ") == 2, "before and after PV-tuning"
    assert opening.count("At 2 bpp with 2 codebooks of 3 bit over groups of 3, after PV-tuning, ") == 1
    assert "At 2 bpp, " not in opening


def test_sentences_name_the_worse_one_too() -> None:
    config = load("config.yaml")
    metrics = invented(config)
    metrics.loc[(metrics["init"] == "oaem") & (metrics["metric"] == "perplexity"), "value"] *= 10
    opening = render(metrics, config, PAPER).split('id="claims"')[0]
    assert opening.count("greedy has the lower perplexity on 3 of 3 texts") == 3
