"""Every family through the whole pipeline: the scripts of the rules, from the model to the exported folder.

What Snakemake adds, files before and after each other, is the same for every family; `test_plugins` takes one
through Snakemake.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from oaem.planning import rules as planning
from tests.conftest import FAMILIES, save_tiny_model
from tests.faults.pipeline import RUN, Pipeline
from tests.workflow.conftest import tiny_config, write_corpus

if TYPE_CHECKING:
    from tests.shared import MadeOnce

TOKEN_SETS = ("calibration-s42", "eval-far", "pv-s42", "pv-validation")
TIED = ("qwen3", "gemma3_text")


@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_model_to_its_export(family: str, made_once: MadeOnce, tmp_path: Path) -> None:
    """Quantisation, PV-tuning, perplexity before, between and after, export; windows of 32, longer than some masks."""
    model = save_tiny_model(tmp_path / "model", family, family in TIED, blocks=2)
    values = tiny_config(model, made_once("corpus", write_corpus))
    values["models"]["tiny"]["blocks"] = 2
    values["grid"][0]["init"] = ["oaem"]
    values["quantization"]["blocks_per_job"] = "all"
    del values["evaluation"]["perplexity"]["near"]
    text = {"corpus": "train", "protocol": "concatenated", "window": 32, "windows": 8}
    values["pv"] = {"text": text, "validation_text": text, "test": "far", "epochs": 2, "batch_size": 4, "lr": 1e-3}
    (tmp_path / "grid").mkdir()
    pipeline = Pipeline(tmp_path / "grid", values)

    pipeline.make(pipeline.model(), *(pipeline.tokens(name) for name in TOKEN_SETS))
    pipeline.make(pipeline.quantize(), pipeline.quantized(), pipeline.pv_tune())
    files = [Path(path) for path in planning.card_metrics(pipeline.config, RUN)]
    perplexities = {file.name.removesuffix("-perplexity.json"): file for file in files if "perplexity" in file.name}
    for stage, file in perplexities.items():
        pipeline.make(pipeline.perplexity(stage, file.parent.parent.relative_to("results").as_posix()))
    pipeline.make(pipeline.export("pre_pv"), pipeline.export("post_pv"))

    assert pipeline.read("results/models/tiny/manifest.json")["family"] == family
    found = {stage: pipeline.read(str(file))["metrics"][0]["value"] for stage, file in perplexities.items()}
    assert (
        found.keys() >= {"fp16", "pre_pv", "post_pv"} and len({found["fp16"], found["pre_pv"], found["post_pv"]}) == 3
    )
    assert all(1 < value < 10_000 for value in found.values()), found
    for stage in ("pre_pv", "post_pv"):
        exported = tmp_path / "grid/results" / RUN / "export" / stage
        config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
        assert config["model_type"] == family and config["quantization_config"]["quant_method"] == "aqlm"
