"""What is published of a results folder, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from oaem.config.grid import Run
from oaem.errors import UserError
from oaem.evaluation.archive import archive, main
from oaem.evaluation.metrics import Metric, write_metrics
from oaem.runtime.atomic import write_json

RUN = Run.parse("runs/tiny/2bpp-2x4g4/oaem/b1-e1/s7")
QUANTIZED = {"fingerprint": "f", "provenance": {"commit": "c"}, "sha256": {"0000": "s"}, "blocks": 1}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An unquantised model's perplexity, a run's, and the run's blocks."""
    folder = tmp_path / "results"
    for subject, run, stage, value in (("models/tiny", None, "fp16", 9.0), (RUN.path, RUN, "pre_pv", 12.5)):
        found = [Metric("tiny", stage, "far", "perplexity", value, run)]
        write_metrics(folder / subject / f"metrics/{stage}-perplexity.json", found, {"device": stage})
    write_json(folder / RUN.path / "quantized.json", QUANTIZED)
    (folder / RUN.path / "blocks").mkdir()
    (folder / RUN.path / "blocks/0000.safetensors").write_bytes(b"weights")
    return folder


def test_measurements_and_what_made_them(results: Path, tmp_path: Path) -> None:
    target = tmp_path / "archive/new"
    assert archive(results, target) == 2
    assert sorted(path.name for path in target.iterdir()) == ["manifests.json", "metrics.csv"]
    assert pd.read_csv(target / "metrics.csv")["value"].tolist() == [9.0, 12.5]
    manifests = json.loads((target / "manifests.json").read_text(encoding="utf-8"))
    assert manifests["models/tiny"] == {"measured": {"fp16-perplexity": {"device": "fp16"}}}
    quantized = {key: QUANTIZED[key] for key in ("fingerprint", "provenance", "sha256")}
    assert manifests[RUN.path] == {"measured": {"pre_pv-perplexity": {"device": "pre_pv"}}, "quantized": quantized}


def inquire(results: Path) -> None:
    """Invented measurements of the run beside its greedy partner: two linears, a block exchanged, errors resized."""
    pair, metrics = (RUN, RUN.partner("greedy")), results / RUN.path / "metrics"
    layers = [("up", "10", 0.5), ("up", "9", 0.25)]
    facts = {"sequences": 2, "window": 8, "few": 0.01}
    directions = [
        Metric("tiny", "directions", linear, metric, value * factor, run, label=block, protocol=facts)
        for linear, block, value in layers
        for factor, run in enumerate(pair, 1)
        for metric in ("relative_error", "error_share_few_rows")
    ]
    write_metrics(metrics / "directions.json", directions, {"device": "d"})
    for name, part, giver in (("exchange", "block 10", "greedy"), ("error_exchange", "size", "greedy")):
        protocol = {"window": 8, "part": "evaluation", "exchanged": {"part": part, "from": giver}}
        found = Metric("tiny", "exchange", "far", "perplexity", 11.5, RUN, "far", "Far", 0.5, 3, protocol)
        write_metrics(metrics / f"{name}.json", [found], {"device": name})


def test_runs_compared_have_tables_of_their_own(results: Path, tmp_path: Path) -> None:
    """A reader of metrics.csv takes its layer errors for the walk's, its perplexities for the run's own."""
    archive(results, tmp_path / "without")
    inquire(results)
    archive(results, tmp_path / "with")
    same = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("without", "with")]
    assert same[0] == same[1]
    assert not (tmp_path / "without/exchange.csv").exists()
    exchange, directions = (pd.read_csv(tmp_path / f"with/{name}.csv") for name in ("exchange", "directions"))
    columns = ["init", "seed", "part", "from", "dataset", "perplexity", "stderr", "n"]
    assert exchange[columns].values.tolist() == [
        ["oaem", 7, "block 10", "greedy", "far", 11.5, 0.5, 3],
        ["oaem", 7, "size", "greedy", "far", 11.5, 0.5, 3],
    ]
    columns = ["init", "block", "linear", "relative_error", "error_share_few_rows", "sequences", "window", "few"]
    assert directions[columns].values.tolist() == [
        ["greedy", 9, "up", 0.5, 0.5, 2, 8, 0.01],
        ["greedy", 10, "up", 1.0, 1.0, 2, 8, 0.01],
        ["oaem", 9, "up", 0.25, 0.25, 2, 8, 0.01],
        ["oaem", 10, "up", 0.5, 0.5, 2, 8, 0.01],
    ]
    manifests = json.loads((tmp_path / "with/manifests.json").read_text(encoding="utf-8"))
    made_by = manifests[RUN.path]["measured"]
    assert made_by["exchange"] == {"device": "exchange"}
    assert made_by["directions"] == {"device": "d"}


def test_nothing_published_is_replaced_and_nothing_empty_published(results: Path, tmp_path: Path) -> None:
    archive(results, tmp_path / "there")
    with pytest.raises(UserError, match="there already"):
        archive(results, tmp_path / "there")
    with pytest.raises(UserError, match="no measurements"):
        archive(tmp_path / "elsewhere", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_line(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(results), str(tmp_path / "new")])
    assert "2 measurements" in capsys.readouterr().out
    for wrong in ([str(results)], [str(results), str(tmp_path / "new")]):
        with pytest.raises(SystemExit, match="archive"):
            main(wrong)
