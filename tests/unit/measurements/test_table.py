"""metrics.csv: pieces of one are joined to the same bytes, and what of two rows is about the same measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from oaem.errors import UserError
from oaem.measurements.table import COLUMNS, IDENTITY, joined, of_rows, read_csv, write_csv
from tests.unit.presentation.paper_metrics import ROOT

ARCHIVES = sorted((ROOT / "archive").glob("*/metrics.csv"))
ROW = {
    "model": "tiny", "geometry": "2bpp-2x4g4", "bpp": 2.0, "init": "oaem", "beam_width": 4, "max_epochs": 2, "seed": 42,
    "stage": "pre_pv", "dataset": "far", "role": "far", "label": "Far", "metric": "perplexity", "value": 9.0,
    "stderr": 0.1, "n": 64, "protocol": "{}",
}  # fmt: skip
UNQUANTISED = {**ROW, **dict.fromkeys(["geometry", "bpp", "init", "beam_width", "max_epochs", "seed"]), "stage": "fp16"}
OTHER = {
    "model": "small", "geometry": "2bpp-2x6g6", "bpp": 2.25, "init": "greedy", "beam_width": 8, "max_epochs": 5,
    "seed": 43, "stage": "post_pv", "dataset": "near", "role": "near", "label": "Near", "metric": "acc", "value": 8.0,
    "stderr": 0.2, "n": 32, "protocol": '{"device": "another"}',
}  # fmt: skip


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("column", ["geometry", "seed", "init", "stage", "metric"])
def test_pieces_are_joined_to_the_whole(path: Path, column: str, tmp_path: Path) -> None:
    """To the byte, in either order, each piece written and read; nobody sees in how many pieces a grid came."""
    whole = read_csv(path)
    pieces = []
    for index, (_, rows) in enumerate(whole.groupby(column, dropna=False)):
        write_csv(tmp_path / f"{index}.csv", rows)
        pieces.append(tmp_path / f"{index}.csv")
    for order in (pieces, pieces[::-1], [*pieces, path]):
        write_csv(tmp_path / "joined.csv", joined(map(read_csv, order)))
        assert (tmp_path / "joined.csv").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("first", [ROW, UNQUANTISED], ids=["run", "unquantised"])
def test_the_same_measurement_is_what_agrees_in_all_that_names_it(column: str, first: dict[str, object]) -> None:
    second = {**first, column: OTHER[column], "value": 7.0}
    found = joined([of_rows([first]), of_rows([second])])["value"].tolist()
    assert sorted(found) == ([7.0, 9.0] if column in IDENTITY else [9.0])


def test_what_names_a_measurement() -> None:
    """All of a run, and what was measured of it on what; not what follows from these, nor what was found."""
    assert set(COLUMNS) - set(IDENTITY) == {"bpp", "role", "label", "value", "stderr", "n", "protocol"}


def test_the_first_of_several_stands_row_by_row() -> None:
    """By a plain loop over the rows of overlapping parts of an archive, whose values tell the parts apart."""
    whole = read_csv(next(path for path in ARCHIVES if path.parent.name == "evidence-2026-11-25"))
    parts = [whole[lambda rows, i=i: rows.index % 3 != i].assign(value=float(i)) for i in range(3)]
    expected: dict[tuple[object, ...], float] = {}
    for part in parts:
        for row in part.astype(object).where(part.notna(), None).to_dict("records"):
            expected.setdefault(tuple(row[column] for column in IDENTITY), row["value"])
    found = joined(parts)
    assert len(found) == len(whole) == len(expected)
    keys = found[IDENTITY].astype(object).where(found[IDENTITY].notna(), None).itertuples(index=False, name=None)
    assert dict(zip(keys, found["value"], strict=True)) == expected
    assert sorted(set(expected.values())) == [0.0, 1.0]


def test_one_that_contradicts_itself_stays_so() -> None:
    """Its two rows go on to the tables, which refuse to choose."""
    both = of_rows([ROW, {**ROW, "value": 8.0}])
    assert joined([both])["value"].tolist() == joined([both, of_rows([ROW])])["value"].tolist() == [9.0, 8.0]
    assert joined([of_rows([ROW]), both])["value"].tolist() == [9.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"metrics\.csv: not a metrics table, it lacks the columns model, geometry"),
        (",".join(column for column in COLUMNS if column != "seed"), "it lacks the columns seed"),
        (",".join(COLUMNS) + "\n" + "1," * 15 + "1\n" + "1," * 16 + "1", r"metrics\.csv: damaged: .*line 3"),
        (",".join(COLUMNS) + "\n" + ",".join("x" for _ in COLUMNS), r"metrics\.csv: damaged: .*float.*'x'"),
    ],
)
def test_what_is_no_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_csv(tmp_path / "metrics.csv")


def test_columns_of_another_version_are_passed_over(tmp_path: Path) -> None:
    rows = of_rows([ROW, UNQUANTISED])
    write_csv(tmp_path / "metrics.csv", rows[COLUMNS[::-1]].assign(more=1))
    assert read_csv(tmp_path / "metrics.csv").to_csv() == rows.to_csv()
