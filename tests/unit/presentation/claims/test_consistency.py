"""The paper's numbers: complete, consistent with each other but for the slips that are listed."""

from __future__ import annotations

import csv
import shutil

import pytest
import yaml

from oaem.errors import UserError
from oaem.presentation.claims import consistency, reported
from oaem.presentation.tables.layouts import TABLES
from tests.unit.presentation.paper_metrics import PAPER


def test_all_tables_are_there_and_have_a_source() -> None:
    sources = reported.load_yaml(PAPER / "sources.yaml")
    files = {path.stem for path in (PAPER / "tables").glob("*.csv")}
    assert files == {*TABLES, "prose"} == set(sources)
    assert all(source["section"] for source in sources.values())


def test_slips_are_exactly_what_the_check_finds() -> None:
    listed = [slip["id"] for slip in reported.load_yaml(PAPER / "slips.yaml")]
    found = [fault.id for fault in consistency.faults(PAPER)]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(found)


def test_printed_digits_are_kept() -> None:
    for path in (PAPER / "tables").glob("table*.csv"):
        for row in reported.rows(PAPER, path.stem):
            for key, text in row.items():
                if key.startswith(("arc", "hella", "piqa", "wino", "avg")) or key == "lambada_acc":
                    assert len(text) == len("0.000"), (path, key, text)


def test_table_1_names_the_source_of_every_refilled_cell() -> None:
    for row in reported.rows(PAPER, "table1"):
        refilled = {part.split(":")[0] for part in row["refilled"].split("; ")}
        assert refilled == {key for key in ("wiki2", "c4") if row[key]}


FAULTS = [
    ("table9", "OA-EM", "avg", "0.593", "table9-oa-em-average"),
    ("table7", "Greedy", "piqa", "0.790", "table7-greedy-average"),
    ("table2", "OA-EM", "gap", "5.39", "table2-oa-em-b4-e100-gap"),
    ("table12", "Greedy", "post_wiki2", "9.40", "table4-table12-llama-8b-2-bpp-post_greedy"),
    ("table16", "OA-EM", "wiki2", "11.63", "table16-table2-oa-em-4-100-wiki2"),
    ("table8", "OA-EM", "lambada_ppl", "7.31", "model-card-oa-em-lambada_ppl"),
]


@pytest.mark.parametrize(("table", "init", "column", "value", "fault"), FAULTS)
def test_a_wrong_digit_is_found(tmp_path, table: str, init: str, column: str, value: str, fault: str) -> None:
    copy = tmp_path / "paper"
    shutil.copytree(PAPER, copy)
    path = copy / "tables" / f"{table}.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    next(row for row in rows if row["init"] == init)[column] = value
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert fault in {found.id for found in consistency.faults(copy)}


def test_a_wrong_ratio_is_found(tmp_path) -> None:
    copy = tmp_path / "paper"
    shutil.copytree(PAPER, copy)
    path = copy / "tables" / "table5.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("1.39", "1.41"), encoding="utf-8")
    assert "table5-lambada-ratio" in {found.id for found in consistency.faults(copy)}


def test_rounding_is_granted_and_no_more() -> None:
    assert consistency.agree(0.5725, 0.0005, 0.573, 3)
    assert not consistency.agree(0.5725, 0.0005, 0.574, 3)


def test_a_missing_folder_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"settings\.csv"):
        reported.settings(tmp_path)


def test_yaml_files_parse() -> None:
    for path in PAPER.glob("*.yaml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8"))
