"""A grid of several models of its own: Tables 3, 4 and 12 to 15 have its numbers under its models' names."""

from __future__ import annotations

import pytest

from oaem.planning.rules import caption
from oaem.presentation import headline, report
from oaem.presentation.tables import markdown
from oaem.presentation.tables.build import build
from tests.unit.presentation.paper_metrics import PAPER, invented, load

LARGER, THIRD = "Qwen2.5-Coder 1.5B", "Qwen2.5-Coder 0.5B"
NOTE = "Weights of Qwen2.5-Coder 0.5B, Gemma 3 270M: dense copies of 4-bit weights (Q4_K_M mix)."


@pytest.mark.parametrize(("name", "model"), [("table12", LARGER), ("table14", THIRD)])
def test_perplexity_of_another_model(name: str, model: str) -> None:
    config = load("three-models.yaml")
    metrics = invented(config)
    built = build(name, metrics, config, PAPER)
    assert (built["missing"] == "").all()
    key = next(key for key, source in config.models.items() if source.label == model)
    own = metrics[(metrics["model"] == key) & (metrics["geometry"] == "2bpp-2x8g8") & (metrics["dataset"] == "boolq")]
    for init, label in (("greedy", "Greedy"), ("oaem", "OA-EM")):
        for stage, column in (("pre_pv", "pre_boolq_ours"), ("post_pv", "post_boolq_ours")):
            (value,) = own[(own["init"] == init) & (own["stage"] == stage)]["value"]
            assert built.set_index("init").loc[label, column] == pytest.approx(value, abs=1e-6)
    text = markdown.render(name, metrics, config, PAPER)
    assert text.startswith(f"# Table {name.removeprefix('table')}. Perplexity of {model}\n")
    assert "Before PV: Wikipedia" in text
    assert "After PV: WikiHow" in text
    assert "Wiki-2" not in text
    assert NOTE in text


@pytest.mark.parametrize(("name", "model"), [("table13", LARGER), ("table15", THIRD)])
def test_tasks_of_another_model(name: str, model: str) -> None:
    config = load("three-models.yaml")
    metrics = invented(config)
    built = build(name, metrics, config, PAPER)
    assert built.filter(like="_ours").notna().all(axis=None)
    assert markdown.render(name, metrics, config, PAPER).startswith(
        f"# Table {name.removeprefix('table')}. Downstream tasks of {model}\n"
    )


def test_every_model_stands_in_the_tables_across_models() -> None:
    config = load("three-models.yaml")
    labels = ["SmolLM2 135M", LARGER, THIRD, "Gemma 3 270M"]
    assert build("table3", invented(config), config, PAPER)["model"].tolist() == labels
    assert build("table4", invented(config), config, PAPER)["model"].tolist() == [labels[0], *labels]


def test_every_page_says_where_the_weights_come_from() -> None:
    config = load("three-models.yaml")
    metrics = invented(config)
    embedded = "Weights of SmolLM2 135M: dense copies of 4-bit weights."
    for text in (
        report.render(metrics, config, PAPER),
        headline.summary(metrics, config),
        caption(config, "table12"),
        markdown.render("table1", metrics, config, PAPER),
    ):
        assert NOTE in text
        assert embedded in text
    assert embedded in headline.summary(invented(load("config.yaml")), load("config.yaml"))
    assert "4-bit" not in headline.summary(invented(load("paper.yaml")), load("paper.yaml"))


def test_captions_name_the_papers_models_in_its_grid_and_places_elsewhere() -> None:
    assert caption(load("paper.yaml"), "table14").startswith("**Table 14. Perplexity of Qwen 3B.** ")
    assert caption(load("config.yaml"), "table13").startswith("**Table 13. Downstream tasks of the second model.** ")
