"""Section "Across models" of other archives than today's: its rows appear and its sentences turn with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from oaem.presentation.findings import AGAIN, EVIDENCE, page
from oaem.presentation.models_compared import BUDGETS, Compared
from tests.unit.presentation.findings_page import TEMPLATE
from tests.unit.presentation.paper_metrics import ROOT
from tests.unit.presentation.test_models_compared import SMALL, invent

ARCHIVE = ROOT / "archive"
PUBLISHED = "three-models-2026-11-29"  # what these tests know of it does not change with archives that come later


def archives(target: Path, *others: str) -> Path:
    """The published archives, of other models only those of these names, of layers of the evidence none."""
    for folder in ARCHIVE.iterdir():
        if folder.is_dir() and (folder.name in others or not folder.name.startswith(("three-models-", "families-"))):
            (target / folder.name).symlink_to(folder)
    inquired = target / f"{AGAIN}b"
    inquired.unlink()
    inquired.mkdir()
    shutil.copy(ARCHIVE / inquired.name / "metrics.csv", inquired)
    return target


def test_sentences_follow_the_archive(tmp_path: Path) -> None:
    """Had greedy's perplexities with Qwen been twice as high, each sentence would say the opposite."""
    archives(tmp_path, PUBLISHED)
    before = page(TEMPLATE, tmp_path)
    (tmp_path / PUBLISHED).unlink()
    shutil.copytree(ARCHIVE / PUBLISHED, tmp_path / PUBLISHED)
    rows = pd.read_csv(tmp_path / PUBLISHED / "metrics.csv")
    rows.loc[(rows["init"] == "greedy") & (rows["metric"] == "perplexity"), "value"] *= 2
    rows.to_csv(tmp_path / PUBLISHED / "metrics.csv", index=False)
    after = page(TEMPLATE, tmp_path)
    turning = (
        ("**Does OA-EM beat greedy with every model?** No", "with every model?** With every one that was measured"),
        ("**With Qwen2.5-Coder 0.5B OA-EM does not beat greedy**", "**With Qwen2.5-Coder 0.5B OA-EM beats greedy**"),
        ("- **A larger rho does not go with a larger advantage**", "- **A larger rho goes with a larger advantage**"),
        ("as the far ratio before PV-tuning in 1 of 1", "as the far ratio before PV-tuning in 0 of 1"),
    )
    for one, other in turning:
        assert (one in before, other in before) == (True, False)
        assert (one in after, other in after) == (False, True)
    assert "So rho alone does not tell" in before
    assert "So rho alone does not tell" not in after


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


def test_a_model_made_again_gives_what_the_first_making_lacks(tmp_path: Path) -> None:
    """Tasks of the evidence made again beside perplexities of the evidence; both folders are named."""
    invent(tmp_path / "evidence-2026-01-01", SMALL, {42: (60, 50)})
    invent(tmp_path / "ablation-nothing-2026-01-02", SMALL, {42: (70, 50)}, accuracies={42: (0.4, 0.5)})
    paper = Compared(tmp_path).all[0]
    assert paper.by_seed(SMALL, "greedy", "pre_pv", "boolq") == {42: 60}
    assert paper.accuracy(SMALL, "greedy") == "0.400"
    assert paper.folders(SMALL) == ["ablation-nothing-2026-01-02", "evidence-2026-01-01"]


def test_without_other_models_the_page_names_none(tmp_path: Path) -> None:
    text = page(TEMPLATE, archives(tmp_path))
    assert "three seeds. Made of the archives" in text
    assert "A larger rho" not in text
    assert "At 3 bpp" not in text.partition("## Across models")[2]
