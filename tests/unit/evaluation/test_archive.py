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
    """An unquantised model's perplexity, a run's, the run's blocks, and a file that holds no rows."""
    folder = tmp_path / "results"
    for subject, run, stage, value in (("models/tiny", None, "fp16", 9.0), (RUN.path, RUN, "pre_pv", 12.5)):
        found = [Metric("tiny", stage, "far", "perplexity", value, run)]
        write_metrics(folder / subject / f"metrics/{stage}-perplexity.json", found, {"device": stage})
    write_json(folder / RUN.path / "quantized.json", QUANTIZED)
    write_json(folder / RUN.path / "metrics/directions.json", {"layers": []})
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
