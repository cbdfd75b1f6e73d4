"""The families beside Llama and Qwen2 through the real workflow, from the model to the exported folder."""

from __future__ import annotations

import json
from pathlib import Path

from oaem.config.schema import parse
from tests.conftest import FAMILIES, save_tiny_model
from tests.workflow.conftest import Workflow, tiny_config

OTHERS = tuple(family for family in FAMILIES if family not in ("llama", "qwen2"))
TIED = ("qwen3", "gemma3_text")


def test_every_family_from_the_model_to_its_export(tmp_path: Path, corpus_folder: Path) -> None:
    """One grid of them all, one start: quantisation, PV-tuning, perplexity before, between and after, export."""
    workflow = Workflow(tmp_path, tiny_config(tmp_path, corpus_folder))
    config = workflow.config
    config["models"] = {
        family.replace("_", "-"): {
            "source": "folder", "label": family, "blocks": 2,
            "path": str(save_tiny_model(tmp_path / "models" / family, family, family in TIED, blocks=2)),
        }
        for family in OTHERS
    }  # fmt: skip
    config["grid"] = [config["grid"][0] | {"model": name, "init": ["oaem"]} for name in config["models"]]
    config["quantization"] |= {"blocks_per_job": "all"}
    del config["evaluation"]["perplexity"]["near"]
    text = {"corpus": "train", "protocol": "concatenated", "window": 32, "windows": 8}
    config["pv"] = {"text": text, "validation_text": text, "test": "far", "epochs": 1, "batch_size": 4}
    runs = parse(config).runs()
    assert len(runs) == len(OTHERS)

    exports = [f"results/{run.path}/export/post_pv.json" for run in runs]
    process = workflow.start("--cores", "2", *exports)
    output, _ = process.communicate(timeout=1800)  # sixty jobs of some three seconds
    assert process.returncode == 0, output
    for run in runs:
        folder = tmp_path / "results" / run.path
        facts = json.loads((tmp_path / "results" / "models" / run.model / "manifest.json").read_text())
        assert facts["family"].replace("_", "-") == run.model
        files = [folder / f"metrics/{stage}-perplexity.json" for stage in ("pre_pv", "post_pv")]
        before, after = (json.loads(file.read_text())["metrics"][0]["value"] for file in files)
        assert before > 1 and after > 1 and before != after, run.model
        config = json.loads((folder / "export/post_pv/config.json").read_text())
        assert config["quantization_config"]["quant_method"] == "aqlm"
