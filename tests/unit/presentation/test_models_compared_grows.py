"""Section "Across models" of other archives than today's: its rows appear and its sentences turn with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from oaem.presentation.findings import EVIDENCE, page
from oaem.presentation.models_compared import BUDGETS
from tests.unit.presentation.paper_metrics import ROOT
from tests.unit.presentation.test_findings import TEMPLATE

ARCHIVE = ROOT / "archive"
PUBLISHED = "three-models-2026-11-29"  # what these tests know of it does not change with archives that come later


def archives(target: Path, *others: str) -> Path:
    """The published archives, of other models only those of these names."""
    for folder in ARCHIVE.iterdir():
        if folder.is_dir() and (folder.name in others or not folder.name.startswith(("three-models-", "families-"))):
            (target / folder.name).symlink_to(folder)
    return target


def test_sentences_follow_the_archive(tmp_path: Path) -> None:
    """The same runs with greedy and OA-EM in each other's place: had OA-EM won with Qwen, the page would say so."""
    archives(tmp_path, PUBLISHED)
    before = page(TEMPLATE, tmp_path)
    assert "**With Qwen2.5-Coder 0.5B OA-EM does not beat greedy**" in before
    assert "lie on the same side of 1 as the far ratio before PV-tuning in 1 of 1" in before
    (tmp_path / PUBLISHED).unlink()
    shutil.copytree(ARCHIVE / PUBLISHED, tmp_path / PUBLISHED)
    rows = pd.read_csv(tmp_path / PUBLISHED / "metrics.csv")
    rows["init"] = rows["init"].replace({"greedy": "oaem", "oaem": "greedy"})
    rows.to_csv(tmp_path / PUBLISHED / "metrics.csv", index=False)
    after = page(TEMPLATE, tmp_path)
    assert "**With Qwen2.5-Coder 0.5B OA-EM beats greedy**" in after
    assert "lie on the same side of 1 as the far ratio before PV-tuning in 0 of 1" in after


def test_the_page_grows_with_an_archive(tmp_path: Path) -> None:
    """Families at the demonstration's budgets: rows, the order by errors and by rho; no more listed as not run."""
    budgets = BUDGETS[1]
    folder = archives(tmp_path, PUBLISHED) / "families-2026-12-01"
    folder.mkdir()
    rows = pd.concat(pd.read_csv(ARCHIVE / name / "metrics.csv") for name in (EVIDENCE, PUBLISHED))
    rows = rows[rows["stage"].isin(["fp16", "pre_pv", "layers"]) & (rows["geometry"].isna() | (rows["bpp"] == 2))]
    rows.loc[rows["geometry"].notna(), ["beam_width", "max_epochs"]] = budgets.search
    rows.to_csv(folder / "metrics.csv", index=False)
    own = pd.read_csv(ARCHIVE / PUBLISHED / "directions.csv")
    own = own.assign(beam_width=budgets.search[0], max_epochs=budgets.search[1])
    better = own.assign(model="smollm2-135m")
    better.loc[better["init"] == "oaem", "relative_error"] *= 0.5
    pd.concat([own, better]).to_csv(folder / "directions.csv", index=False)
    text = " ".join(page(TEMPLATE, tmp_path).split())
    assert "| demonstration | Qwen2.5-Coder 0.5B | before PV | Wikipedia (far) |" in text
    assert (
        "With the budgets of the demonstration the far ratio grows from model to model at 1 of 1 steps in the order of "
        "these errors, at 0 of 1 in the order of rho."
    ) in text
    missing = text.partition("**Not run:**")[2]
    assert "Gemma 3 270M (demonstration)" in missing
    assert "Qwen2.5-Coder 0.5B (demonstration)" not in missing


def test_without_other_models_the_page_names_none(tmp_path: Path) -> None:
    text = page(TEMPLATE, archives(tmp_path))
    assert "three seeds. Made from" in text
    assert "A larger rho" not in text
    assert "Zero-shot after PV-tuning" not in text
