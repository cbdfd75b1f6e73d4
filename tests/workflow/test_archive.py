"""Tables, figures, claims and report from an archived metrics.csv: no model, no GPU, no network."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd
import pytest

from oaem.config.schema import load
from oaem.evaluation.metrics import write_csv
from tests.unit.presentation.paper_metrics import invented
from tests.workflow.conftest import ROOT, snakemake


def rebuild(folder: Path, *arguments: str, config: str = "paper.yaml", fresh: Collection[str] = ()) -> tuple[int, str]:
    places = ("-s", ROOT / "Snakefile", "--directory", folder)
    arguments = (*arguments, "--cores", "1", "--configfile", str(ROOT / "config" / config))
    return snakemake(*map(str, places), *arguments, fresh=fresh)


def test_everything_is_rebuilt_from_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    archive = tmp_path / "archive"
    archive.mkdir()
    write_csv(archive / "metrics.csv", invented(load(ROOT / "config/paper.yaml")))
    code, output = rebuild(tmp_path, "--config", f"from_archive={archive}")
    assert code == 0, output
    for rule in ("model", "tokens", "quantize_blocks", "perplexity", "pv_tune"):
        assert f"rule {rule}:" not in output
    table = pd.read_csv(tmp_path / "results/tables/table2.csv")
    ours, theirs = table["post_pv_ours"].dropna(), table["post_pv_paper"].dropna()
    assert len(ours) == len(theirs) == 8
    assert (ours - theirs).abs().max() < 1e-9, "these metrics are the paper's own numbers"
    assert (tmp_path / "results/report.html").exists()
    assert len(list((tmp_path / "results/tables").glob("table*.csv"))) == 16


def test_the_stored_run_of_the_embedded_grid_fills_its_tables(tmp_path: Path) -> None:
    """All but Tables 12 to 15, which are about a second and a third model."""
    stored = sorted((ROOT / "archive").glob("embedded-*"))[-1]
    names = [f"results/tables/table{number}.csv" for number in range(1, 17)]
    code, output = rebuild(tmp_path, *names, "--config", f"from_archive={stored}", config="embedded-ten-runs.yaml")
    assert code == 0, output
    filled = [name for name in names if pd.read_csv(tmp_path / name)["missing"].isna().all()]
    assert filled == [f"results/tables/table{number}.csv" for number in (*range(1, 12), 16)]


def test_an_archive_that_is_no_metrics_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    code, output = rebuild(tmp_path, "results/tables/table1.csv", "--config", f"from_archive={tmp_path}")
    assert code != 0
    assert "not a metrics table" in output
    assert "Traceback" not in output


def test_the_evidence_is_rebuilt_with_its_spread(tmp_path: Path) -> None:
    """Tables, figures, claims and report of three seeds; what was not run is said, never filled."""
    code, output = rebuild(
        tmp_path, "--config", f"from_archive={ROOT / 'archive/evidence-2026-11-25'}", config="evidence.yaml"
    )
    assert code == 0, output
    second = pd.read_csv(tmp_path / "results/tables/table2.csv").set_index("init")
    assert second["post_pv_std"].notna().all()
    domains = pd.read_csv(tmp_path / "results/tables/table5.csv")
    assert (domains["ratio_low"] > 1).all()
    assert "not run" in pd.read_csv(tmp_path / "results/tables/table7.csv")["missing"].iloc[0]
    claims = pd.read_csv(tmp_path / "results/tables/claims.csv").set_index("id")
    assert claims.loc["pre-pv-every-budget", ["ours", "seeds"]].tolist() == ["holds", 3]
    assert claims.loc["pre-pv-every-rate-and-model", "ours"] == "undecided", "at 3 bpp OA-EM is not better"
    report = (tmp_path / "results/report.html").read_text(encoding="utf-8")
    assert "At 3 bpp, before PV-tuning, greedy has the lower perplexity on 3 of 3 texts" in report
    assert (tmp_path / "results/figures/seeds.svg").exists()


def test_the_sweep_of_rho_is_rebuilt(tmp_path: Path) -> None:
    stored = ROOT / "archive/rho-sweep-2026-11-25"
    wanted = ["results/tables/rho_sweep.csv", "results/figures/rho_sweep.svg"]
    archive = f"from_archive={stored}"
    code, output = rebuild(tmp_path, *wanted, "--config", archive, config="rho-sweep.yaml", fresh=("figure", "table"))
    assert code == 0, output
    table = pd.read_csv(tmp_path / wanted[0]).set_index(["geometry", "stage", "text"])
    assert len(table) == 5 * 2 * 3
    metrics = pd.read_csv(stored / "metrics.csv")
    for init in ("greedy", "oaem"):
        rows = metrics[(metrics.geometry == "2bpp-2x4g4") & (metrics.stage == "pre_pv") & (metrics.init == init)]
        shown = table.loc[("2bpp-2x4g4", "before PV", "Wikipedia"), f"{init}_ours"]
        assert shown == pytest.approx(rows[rows.dataset == "boolq"]["value"].mean(), abs=1e-6)
    silent = table[table["ratio_ours"].isna()]
    assert silent["missing"].str.contains("ratio: not run").all()
    assert (tmp_path / wanted[1]).exists()
