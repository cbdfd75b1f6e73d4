"""The grid and its paths, both ways."""

import pytest

from oaem.config.geometry import Geometry
from oaem.config.grid import Run
from oaem.config.schema import load, parse
from oaem.planning import layout
from oaem.planning import rules as planning

RUN = Run("llama-3.2-3b", Geometry(2, 8, 8), "oaem", 8, 100, 42)


def test_a_run_and_its_path_are_the_same_thing() -> None:
    assert RUN.path == "runs/llama-3.2-3b/2bpp-2x8g8/oaem/b8-e100/s42"
    assert Run.parse(RUN.path) == RUN


@pytest.mark.parametrize(
    "path",
    ["", "runs/m/2bpp-2x8g8/oaem/b8-e100", "runs/m/3bpp-2x8g8/oaem/b8-e100/s42", "runs/m/2bpp-2x8g8/oaem/b08-e100/s42",
     "runs/m/2bpp-2x8g8/oaem/8-100/s42", "other/m/2bpp-2x8g8/oaem/b8-e100/s42"],
)  # fmt: skip
def test_what_is_not_a_run_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"not a|contradicts"):
        Run.parse(path)


def test_geometry_counts_as_the_paper_does() -> None:
    geometry = Geometry(2, 8, 8)
    assert geometry.bits_per_parameter == 2
    assert geometry.rho(8192, 3072) == pytest.approx(48)
    assert Geometry(3, 8, 8).rho(8192, 3072) == pytest.approx(48 / 256)
    assert geometry.true_bits(3072, 3072) == pytest.approx(2 + 16 * (2 * 256 * 8 + 3072) / 3072**2)


@pytest.mark.parametrize("geometry", [Geometry(2, 8, 8), Geometry(3, 6, 6), Geometry(1, 16, 8), Geometry(1, 7, 8)])
def test_geometry_names_go_both_ways(geometry: Geometry) -> None:
    assert Geometry.parse(geometry.name) == geometry


def test_the_papers_grid_is_complete() -> None:
    config = load("config/paper.yaml")
    runs = config.runs()
    assert len(runs) == len(set(runs)) == 14
    jobs = [path for run in runs for path in planning.ranges(config, run.path)]
    assert len(jobs) == len(set(jobs)) == 10 * 28 + 2 * 32 + 2 * 36
    searches = {(r.init, r.beam_width, r.max_epochs) for r in runs if r.model == "llama-3.2-3b" and "2bpp" in r.path}
    assert searches == {(i, b, e) for i in ("greedy", "oaem") for b, e in [(4, 100), (8, 100), (16, 100), (8, 5)]}


@pytest.mark.parametrize(
    ("size", "expected"), [("all", [(0, 30)]), (30, [(0, 30)]), (12, [(0, 12), (12, 24), (24, 30)])]
)
def test_blocks_are_cut_into_jobs(size: object, expected: list[tuple[int, int]]) -> None:
    values = load("config/config.yaml").model_dump(mode="json")
    values["quantization"]["blocks_per_job"] = size
    config = parse(values)
    assert layout.block_ranges(config, "smollm2-135m") == expected
    run = config.runs()[0].path
    for (start, _), before in zip(expected, [None, *expected], strict=False):
        wanted = [] if before is None else [layout.range_manifest(run, *before)]
        assert layout.previous_range(config, run, start) == wanted


def test_every_grid_point_appears_once_however_often_it_is_named() -> None:
    values = load("config/config.yaml").model_dump(mode="json")
    values["grid"] = values["grid"] * 2
    assert parse(values).runs() == load("config/config.yaml").runs()
