"""Figures: complete without data, the same bytes from the same numbers, labels apart."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
from matplotlib.text import Annotation

from oaem.errors import UserError
from oaem.measurements.table import COLUMNS
from oaem.presentation.figures.drawing import canvas
from oaem.presentation.figures.figures import FIGURES, save
from oaem.presentation.figures.labels import Label, place
from tests.unit.presentation.paper_metrics import PAPER, invented, load

EMPTY = pd.DataFrame(columns=COLUMNS)


def words(figure) -> str:
    return "\n".join(text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title])


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("grid", ["config.yaml", "paper.yaml"])
def test_a_figure_without_data_says_so(name: str, grid: str) -> None:
    said = words(FIGURES[name](EMPTY, load(grid), PAPER)).lower()
    assert "not run" in said or "no " in said


@pytest.mark.parametrize(("name", "suffix"), [*((name, ".svg") for name in FIGURES), ("frontier", ".png")])
def test_same_numbers_same_bytes(tmp_path, name: str, suffix: str) -> None:
    config = load("config.yaml")
    for copy in ("a", "b"):
        save(FIGURES[name](invented(config), config, PAPER), tmp_path / f"{copy}{suffix}")
    first, second = ((tmp_path / f"{copy}{suffix}").read_bytes() for copy in ("a", "b"))
    assert first == second
    assert first.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]
    # No version and no date, which would change the bytes from one installation or day to the next.
    assert not any(word in first for word in (b"Matplotlib v", b"dc:date", b"Software"))


def test_the_papers_panel_stands_beside_ours() -> None:
    config = load("paper.yaml")
    beam = FIGURES["beam"](invented(config), config, PAPER)
    assert [axes.get_title(loc="left") for axes in beam.axes] == [
        "This grid, before PV-tuning",
        "This grid, after PV-tuning",
        "The paper, before PV-tuning",
        "The paper, after PV-tuning",
    ]
    assert words(beam).count("352.4") == 2


def test_dominated_points_are_crossed_out() -> None:
    config = load("paper.yaml")
    figure = FIGURES["frontier"](invented(config), config, PAPER)
    # Points, legend entries and crosses are one collection each: 8 points, 6 of them dominated, 3 legend entries.
    assert [len(axes.collections) for axes in figure.axes] == [8 + 6 + 3, 8 + 6 + 3]


def test_the_style_of_the_process_is_left_alone() -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 31.0}):
        config = load("config.yaml")
        FIGURES["gap"](invented(config), config, PAPER)
        assert matplotlib.rcParams["font.size"] == 31.0


def test_unknown_suffix(tmp_path) -> None:
    config = load("config.yaml")
    with pytest.raises(UserError, match=r"\.svg or \.png"):
        save(FIGURES["gap"](EMPTY, config, PAPER), tmp_path / "figure.pdf")


def test_labels_of_close_points_do_not_cover_each_other() -> None:
    figure, (axes,) = canvas(5, 4)
    labels = [
        Label(x, y, f"b={index}, e=100") for index, (x, y) in enumerate([(1, 1), (1.02, 1), (1.01, 1.02), (3, 3)])
    ]
    axes.scatter([label.x for label in labels], [label.y for label in labels])
    axes.margins(0.2)
    place(figure, [(axes, labels)])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts if isinstance(text, Annotation)]
    assert len(boxes) == len(labels)
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
