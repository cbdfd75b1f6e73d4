"""What docs/extending.md shows, taken from that page and run by the real workflow: nothing of the tree is changed."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, SmolLM3Config

from oaem.config.grid import Run
from oaem.config.schema import parse
from tests.conftest import FAMILIES, HIDDEN, MLP, VOCABULARY, train_tokenizer
from tests.workflow.conftest import Workflow, jobs_of, tiny_config
from tests.workflow.page import code_blocks

PAGE = "extending.md"


def install(folder: Path, heading: str, name: str) -> None:
    """What a package manager would leave of the package of a section: its module and its metadata."""
    (source,) = code_blocks(PAGE, heading, "python")
    (project,) = code_blocks(PAGE, heading, "toml")
    module = source.split()[1]
    assert module.endswith(".py")
    (folder / module).write_text(source, encoding="utf-8")
    lines = []
    for group, points in tomllib.loads(project)["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")


@pytest.fixture
def smollm3(tmp_path: Path) -> Path:
    """A tiny random model of a family that the library does not know."""
    config = SmolLM3Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, no_rope_layer_interval=2, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "smollm3")
    train_tokenizer(bos=True).save_pretrained(tmp_path / "smollm3")
    return tmp_path / "smollm3"


def test_an_initialisation_a_family_and_a_rate_from_outside(tmp_path: Path, smollm3: Path, corpus_folder: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    workflow = Workflow(tmp_path, tiny_config(smollm3, corpus_folder))
    (rate,) = code_blocks(PAGE, "Another bit rate", "yaml")
    shown = yaml.safe_load(rate)
    workflow.config["geometries"] |= shown["geometries"]
    workflow.config["models"]["tiny"]["blocks"] = 2
    workflow.config["quantization"]["blocks_per_job"] = "all"
    del workflow.config["evaluation"]["perplexity"]["far"]
    workflow.config["grid"][0] |= {"bpp": shown["grid"][0]["bpp"], "init": ["mine"]}

    code, output = workflow.run("-n")
    assert code != 0
    assert "'mine' is not an initialisation" in output

    environment = {"PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])}
    install(packages, "Another initialisation", "my_init")
    (run,) = parse(workflow.config).runs()
    targets = [f"results/{run.path}/metrics/pre_pv-perplexity.json"]
    code, output = workflow.run(*targets, env=environment)
    assert code != 0
    assert f"'smollm3' is not a known model family ({', '.join(sorted(FAMILIES))})" in output

    install(packages, "Another model family", "my_family")
    code, output = workflow.run(*targets, env=environment)
    assert code == 0, output
    assert (run.init, run.geometry.bits_per_parameter, run.geometry.name) == ("mine", 2.5, "2.5bpp-5x4g8")
    (metric,) = json.loads((tmp_path / targets[0]).read_text(encoding="utf-8"))["metrics"]
    assert (metric["init"], metric["bpp"]) == ("mine", 2.5)
    assert metric["value"] > 1
    assert Run.parse(run.path) == run
    assert len(workflow.blocks()) == 2

    assert "Nothing to be done" in workflow.run("-n", *targets, env=environment)[1]
    (packages / "my_init-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my_init\nVersion: 1.1\n", encoding="utf-8"
    )
    code, output = workflow.run("-n", *targets, env=environment)
    assert code == 0, output
    assert jobs_of(output, "quantize_blocks") == jobs_of(output, "perplexity") == 1
    assert jobs_of(output, "model") == jobs_of(output, "tokens") == 0


@pytest.mark.parametrize("heading", ["Another bit rate", "Another model or text"])
def test_configurations_shown_are_accepted(tmp_path: Path, heading: str) -> None:
    values = tiny_config(tmp_path, tmp_path)
    values["models"]["smollm2-135m"] = {"source": "embedded", "label": "SmolLM2", "blocks": 30}
    for block in code_blocks(PAGE, heading, "yaml"):
        for key, shown in yaml.safe_load(block).items():
            values[key] = shown if key == "grid" else values[key] | shown
    assert parse(values).runs()
