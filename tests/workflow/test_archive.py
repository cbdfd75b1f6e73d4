"""Tables, figures, claims and report from an archived metrics.csv: no model, no GPU, no network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import pandas as pd
import pytest

from oaem.config.schema import load
from oaem.measurements.table import read_csv, write_csv
from tests.unit.presentation.paper_metrics import invented
from tests.workflow.conftest import ROOT, snakemake

README = ROOT / "archive/README.md"
EVIDENCE, SWEEP, ENDS = (
    ROOT / "archive" / name for name in ("evidence-2026-11-25", "rho-sweep-2026-11-25", "rho-sweep-2026-11-29b")
)


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


def test_archives_that_are_none_are_refused_before_any_job(tmp_path: Path) -> None:
    """Every fault of every piece at once."""
    for name in ("broken", "results"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken/metrics.csv").write_text("model,b\n1,2\n")
    shutil.copy(EVIDENCE / "metrics.csv", tmp_path / "results")
    (tmp_path / "again").symlink_to(EVIDENCE)
    folders = json.dumps([str(EVIDENCE), "broken", "again", "results", "absent"])
    code, output = rebuild(tmp_path, "results/tables/table1.csv", "--config", f"from_archive={folders}")
    assert code != 0
    for told in (
        "from_archive: broken/metrics.csv is not a metrics table, it lacks the columns geometry, bpp",
        f"from_archive: again is the folder {EVIDENCE} again; name it once",
        "from_archive: results is where metrics.csv is about to be written; make an archive of it first",
        "from_archive: absent holds no metrics.csv",
    ):
        assert told in output, output
    assert "Traceback" not in output
    assert not (tmp_path / "logs").exists(), "a job has started"


def pieces_of(config: str) -> list[Path]:
    """The folders that the command of archive/README.md names for a configuration."""
    command = re.search(rf"^snakemake .*{config} .*from_archive='(.*)'$", README.read_text("utf-8"), re.M)
    assert command is not None
    return [ROOT / folder for folder in json.loads(command[1])]


def test_the_evidence_is_rebuilt_with_its_spread(tmp_path: Path) -> None:
    """Tables, figures, claims and report of three seeds; the grid is whole; what it has not is said."""
    archives = f"from_archive={json.dumps([str(piece) for piece in pieces_of('evidence.yaml')])}"
    code, output = rebuild(tmp_path, "--config", archives, config="evidence.yaml")
    assert code == 0, output
    second = pd.read_csv(tmp_path / "results/tables/table2.csv").set_index("init")
    assert second["post_pv_std"].notna().all()
    domains = pd.read_csv(tmp_path / "results/tables/table5.csv")
    assert (domains["ratio_low"] > 1).all()
    for table in (*range(1, 9), 16):
        assert pd.read_csv(tmp_path / f"results/tables/table{table}.csv")["missing"].isna().all(), table
    assert "not in this grid" in pd.read_csv(tmp_path / "results/tables/table9.csv")["missing"].iloc[0]
    claims = pd.read_csv(tmp_path / "results/tables/claims.csv").set_index("id")
    assert claims.loc["pre-pv-every-budget", ["ours", "seeds"]].tolist() == ["holds", 3]
    for stage in ("pre-pv", "post-pv"):
        assert claims.loc[f"{stage}-every-rate-and-model", "ours"] == "undecided", "at 3 bpp OA-EM is not better"
    assert claims.loc["high-rate-gap-attenuates", ["ours", "seeds"]].tolist() == ["fails", 3]
    report = (tmp_path / "results/report.html").read_text(encoding="utf-8")
    assert "At 3 bpp, after PV-tuning, greedy has the lower perplexity on 2 of 3 texts" in report
    assert (tmp_path / "results/figures/seeds.svg").exists()


def test_larger_model_and_other_family_fill_their_tables(tmp_path: Path) -> None:
    """Tables 12 to 15, Qwen2.5-Coder 1.5B and 0.5B by a GPU, from those runs' archives; no terms are asked for."""
    pieces = pieces_of("three-models.yaml")
    wanted = [f"results/tables/table{number}.csv" for number in (12, 13, 14, 15)]
    archives = f"from_archive={json.dumps([str(piece) for piece in pieces])}"
    code, output = rebuild(tmp_path, *wanted, "--config", archives, config="three-models.yaml", fresh=("table",))
    assert code == 0, output
    tables = [pd.read_csv(tmp_path / name).set_index("init") for name in wanted]
    assert all(table["missing"].isna().all() for table in tables)
    metrics = pd.concat(pd.read_csv(piece / "metrics.csv") for piece in pieces)
    tuned = metrics.query("stage == 'post_pv' and seed == 42 and geometry == '2bpp-2x8g8'")
    for model, (perplexity, tasks) in {"qwen2.5-coder-1.5b": tables[:2], "qwen2.5-coder-0.5b": tables[2:]}.items():
        for label, init in (("Greedy", "greedy"), ("OA-EM", "oaem")):
            found = tuned[(tuned["model"] == model) & (tuned["init"] == init)].set_index(["dataset", "metric"])["value"]
            assert perplexity.loc[label, "post_boolq_ours"] == pytest.approx(found["boolq", "perplexity"], abs=1e-6)
            assert tasks.loc[label, "arc_e_ours"] == pytest.approx(found["arc_easy", "acc_norm"], abs=1e-6)


def test_the_sweep_of_rho_is_rebuilt_from_three_pieces(tmp_path: Path) -> None:
    """By archive/README.md's command: 8 over 8 from the first, 6 over 6 and 4 over 4 from the next, then its ends."""
    pieces = pieces_of("rho-sweep.yaml")
    assert [piece.name for piece in pieces] == [EVIDENCE.name, SWEEP.name, ENDS.name]
    wanted = ["results/tables/rho_sweep.csv", "results/figures/rho_sweep.svg"]
    archives = f"from_archive={json.dumps([str(piece) for piece in pieces])}"
    code, output = rebuild(tmp_path, *wanted, "--config", archives, config="rho-sweep.yaml", fresh=("figure", "table"))
    assert code == 0, output
    table = pd.read_csv(tmp_path / wanted[0]).set_index(["geometry", "stage", "text"])
    assert len(table) == 5 * 2 * 3
    measured = {"2bpp-2x8g8": EVIDENCE, "2bpp-2x6g6": SWEEP, "2bpp-2x4g4": SWEEP}
    for geometry, piece in (measured | {"2bpp-2x12g12": ENDS, "2bpp-2x3g3": ENDS}).items():
        metrics = pd.read_csv(piece / "metrics.csv")
        rows = metrics[(metrics.geometry == geometry) & metrics.seed.isin([42, 43]) & (metrics.dataset == "boolq")]
        assert not rows.empty
        for words, stage in (("before PV", "pre_pv"), ("after PV", "post_pv")):
            for init in ("greedy", "oaem"):
                mean = rows[(rows.stage == stage) & (rows.init == init) & (rows.metric == "perplexity")]["value"].mean()
                shown = table.loc[(geometry, words, "Wikipedia"), f"{init}_ours"]
                assert shown == pytest.approx(mean, abs=1e-6)
    assert set(table.index.unique("geometry")) == {f"2bpp-2x{bits}g{bits}" for bits in (12, 8, 6, 4, 3)}
    assert table["missing"].isna().all()
    assert (tmp_path / wanted[1]).exists()
    united = read_csv(tmp_path / "results/metrics.csv")
    found = [pd.read_csv(piece / "metrics.csv") for piece in pieces]
    unquantised = (found[-1]["stage"] == "fp16").sum()
    assert len(united) == sum(map(len, found)) - unquantised, "they share the unquantised model's"
