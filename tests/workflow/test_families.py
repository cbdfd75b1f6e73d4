"""The families beside Llama and Qwen2 through every job of the workflow, from the model to the exported folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import FAMILIES, save_tiny_model
from tests.faults.pipeline import Pipeline
from tests.workflow.conftest import tiny_config

OTHERS = tuple(family for family in FAMILIES if family not in ("llama", "qwen2"))
TIED = ("qwen3", "gemma3_text")


@pytest.mark.parametrize("family", OTHERS)
def test_every_family_from_the_model_to_its_export(tmp_path: Path, corpus_folder: Path, family: str) -> None:
    """Quantisation, PV-tuning, perplexity before, between and after, export; not Snakemake, which knows no family."""
    config = tiny_config(save_tiny_model(tmp_path / "model", family, family in TIED, blocks=2), corpus_folder)
    config["models"]["tiny"]["blocks"] = 2
    config["grid"][0]["init"] = ["oaem"]
    config["quantization"]["blocks_per_job"] = "all"
    del config["evaluation"]["perplexity"]["near"]
    text = {"corpus": "train", "protocol": "concatenated", "window": 32, "windows": 8}
    config["pv"] = {"text": text, "validation_text": text, "test": "far", "epochs": 1, "batch_size": 4}
    pipeline = Pipeline(tmp_path, config)

    tokens = [pipeline.tokens(name) for name in ("calibration-s42", "eval-far", "pv-s42", "pv-validation")]
    pipeline.make(pipeline.model(), *tokens, pipeline.perplexity("fp16", "models/tiny"), pipeline.quantize())
    pipeline.make(pipeline.quantized(), pipeline.perplexity("pre_pv"))
    pipeline.make(pipeline.pv_tune(), pipeline.perplexity("post_pv"), pipeline.export("post_pv"))

    assert json.loads((tmp_path / "results/models/tiny/manifest.json").read_text())["family"] == family
    files = [pipeline.run_folder / f"metrics/{stage}-perplexity.json" for stage in ("pre_pv", "post_pv")]
    before, after = (json.loads(file.read_text())["metrics"][0]["value"] for file in files)
    assert before > 1 and after > 1 and before != after
    exported = json.loads((pipeline.run_folder / "export/post_pv/config.json").read_text())
    assert exported["quantization_config"]["quant_method"] == "aqlm"
