"""Every ablation through the scripts of the rules at toy size, and one through Snakemake, to its row of the table."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from oaem.config.files import amended, read
from oaem.config.schema import load
from oaem.planning import rules as planning
from oaem.presentation.ablations import lines
from tests.faults.pipeline import Pipeline
from tests.workflow.conftest import ROOT, Workflow, jobs_of, snakemake

FILES = sorted((ROOT / "config/ablations").glob("*.yaml"))


def toy(path: Path) -> dict[str, Any]:
    """What an ablation changes, for a toy grid: its title and how it quantises."""
    return {key: value for key, value in read(path).items() if key in ("title", "quantization")}


def initialisations(path: Path) -> list[str]:
    (entry,) = read(path)["grid"]
    return list(entry["init"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_ablation_quantises_a_toy(finished: Workflow, tmp_path: Path, path: Path) -> None:
    """To other blocks than without it, but for the one that changes nothing."""
    config = amended(copy.deepcopy(finished.config), toy(path))
    if config["quantization"]["calibration"]["windows"] is None:
        config["quantization"]["calibration"]["documents"] = 4  # all there is of a text that is soon at its end
    pipeline = Pipeline(finished.copied(tmp_path / "toy").without_runs().folder, config)
    text = [pipeline.tokens("calibration-s42")] if path.stem.endswith("text") else []
    inits = initialisations(path)
    stream = [pipeline.stream()] if planning.stream(pipeline.config, pipeline.path(inits[0])) else []
    pipeline.make(*text, *stream, *(pipeline.quantize(0, 3, init) for init in inits))
    blocks, before = Workflow(pipeline.folder, config).blocks(), finished.blocks()
    assert len(blocks) == 3 * len(inits)
    for name, content in blocks.items():
        same = content == before[name.replace("oaem_exact", "oaem")]
        assert same == (path.stem == "nothing"), name


def test_an_ablation_becomes_a_row_of_the_table(finished: Workflow, tmp_path: Path) -> None:
    """Two files, a folder of its own, its measurements beside those without it."""
    path = ROOT / "config/ablations/rounds-1.yaml"
    more = {**toy(path), "grid": [{**finished.config["grid"][0], "init": initialisations(path)}]}
    for name, values in (("base", finished.config), ("rounds-1", more)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    folder = finished.copied(tmp_path / "rounds-1").without_runs().folder
    files = [tmp_path / "base.yaml", tmp_path / "rounds-1.yaml"]
    places = ("--directory", folder, "--cores", "1", "--configfile", *files, "--", "results/metrics.csv")
    code, output = snakemake(*map(str, places))
    assert code == 0, output
    evidence, measured = (pd.read_csv(each / "results/metrics.csv") for each in (finished.folder, folder))
    config = load(*files)
    line = lines(evidence, {"rounds-1": (config, measured)})[-1]
    assert (line.title, line.init, line.seeds) == ("OA-EM of one round", "oaem", "42")
    with_it, without = (
        frame.query("init == 'oaem' and stage == 'pre_pv' and dataset == 'far'")["value"].item()
        for frame in (measured, evidence)
    )
    assert line.change("pre_pv", "far") == f"{with_it / without:.3f}"
    assert line.perplexity("pre_pv", "far") == f"{with_it:.{1 if with_it >= 100 else 2}f}"
    assert with_it != without


@pytest.mark.parametrize(("name", "runs", "streams"), [("rounds-10", 3, 0), ("model-targets", 6, 3)])
def test_the_documented_command_plans(tmp_path: Path, name: str, runs: int, streams: int) -> None:
    command = (ROOT / "docs/ablations.md").read_text(encoding="utf-8").partition("name=rounds-1\nsnakemake ")[2]
    words = command.partition("\npython ")[0].replace("\\\n", " ").replace("$name", name).split()
    places = [str(tmp_path / word) if word.startswith("results/ablations") else word for word in words]
    code, output = snakemake("-n", *places)
    assert code == 0, output
    assert jobs_of(output, "quantize_blocks") == jobs_of(output, "pv_tune") == runs
    assert jobs_of(output, "calibration_stream") == streams
    assert jobs_of(output, "downstream") == 0
