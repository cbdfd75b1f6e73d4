"""Configuration: what ships is valid and documented, and every fault is one clear message."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from oaem.config import docs
from oaem.config.schema import load, parse, schema
from oaem.config.settings import BlockTuningSettings, KMeansSettings, OaemSettings
from oaem.errors import UserError
from oaem.planning import rules as planning
from oaem.planning.checks import checked, enough_gpus
from oaem.runtime.provenance import fingerprint


def default() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(Path("config/config.yaml").read_text(encoding="utf-8"))
    return values


# What a file is no configuration without, in order.
AMENDED = {
    "inquiry": ("config",),
    "families": ("three-models", "config"),
    "search-points": ("evidence",),
    "small-rho-sweep": ("config",),
    "small-search-points": ("config",),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in Path("config").glob("*.yaml")))
def test_what_ships_is_valid(name: str) -> None:
    config = load(*(f"config/{each}.yaml" for each in (*AMENDED.get(name, ()), name)))
    assert checked(config.model_dump(mode="json")) == config


def test_schema_and_key_tables_are_those_of_the_models() -> None:
    hint = "run: python -m oaem.config.docs config"
    assert Path("config/schema.json").read_text(encoding="utf-8") == schema(), hint
    assert Path("config/README.md").read_text(encoding="utf-8") == docs.readme(), hint


def test_the_defaults_are_the_papers() -> None:
    settings = load("config/paper.yaml").quantization
    assert (settings.kmeans.iterations, settings.kmeans.check_every, settings.kmeans.max_vectors) == (100, 10, None)
    assert (settings.oaem.rounds, settings.oaem.steps, settings.oaem.damping) == (3, 100, 0.01)
    assert (settings.oaem.lr, settings.oaem.final_lr) == (1e-4, 1e-5)
    codebooks = settings.codebooks
    assert (codebooks.solver, codebooks.steps, codebooks.lr) == ("adam", 100, 1e-4)
    assert (codebooks.beta1, codebooks.beta2, codebooks.relative_tolerance) == (0, 0.95, 0.01)
    tuning = settings.block_tuning
    assert (tuning.epochs, tuning.lr, tuning.beta1, tuning.beta2) == (5, 1e-5, 0.9, 0.95)
    pv = load("config/paper.yaml").pv
    assert pv is not None
    assert (pv.epochs, pv.batch_size, pv.lr, pv.beta1, pv.beta2) == (5, 32, 3e-4, 0.9, 0.95)
    assert (pv.code_lr, pv.code_beta1, pv.code_beta2, pv.max_code_change) == (1e-2, 0.0, 0.95, 0.01)


def test_what_archived_runs_were_told_is_what_they_would_be_told_today() -> None:
    """A setting that came later is not told of at its default, else finished runs would be made again for it."""
    manifests = json.loads(Path("archive/rho-sweep-2026-11-25/manifests.json").read_text(encoding="utf-8"))
    archived = {made["measured"]["quantization-time"]["settings"] for made in manifests.values() if "measured" in made}
    config = load("config/rho-sweep.yaml")
    assert archived == {fingerprint(json.loads(planning.quantization_parameters(config)))}
    quantization = config.quantization
    later = {
        "oaem": OaemSettings(row_weights="squared_scale"),
        "block_tuning": BlockTuningSettings(targets="unquantized_model"),
    }
    changed = config.model_copy(update={"quantization": quantization.model_copy(update=later)})
    told = json.loads(planning.quantization_parameters(changed))
    assert told["oaem"]["row_weights"] == "squared_scale" and "row_weights" not in told["kmeans"]
    assert told["block_tuning"]["targets"] == "unquantized_model"


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"inputs": "original"}, "quantization: block_tuning.targets: unquantized_model is for inputs: sequential"),
        ({"block_tuning": {"epochs": 0}}, r"targets: unquantized_model, but block_tuning.epochs: 0 turns tuning off"),
    ],
)
def test_targets_that_nothing_is_tuned_to_are_refused(quantization: dict[str, Any], message: str) -> None:
    values = yaml.safe_load(Path("config/evidence.yaml").read_text(encoding="utf-8"))
    values["quantization"] |= {"block_tuning": {}} | quantization
    parse(values)
    values["quantization"]["block_tuning"]["targets"] = "unquantized_model"
    with pytest.raises(UserError, match=message):
        parse(values)


def test_a_card_says_what_is_not_the_papers() -> None:
    config = load("config/rho-sweep.yaml")
    run = config.runs()[0].path
    later = {
        "kmeans": KMeansSettings(row_weights="squared_scale"),
        "block_tuning": BlockTuningSettings(targets="unquantized_model"),
    }
    changed = config.model_copy(update={"quantization": config.quantization.model_copy(update=later)})
    plain, other = (json.loads(planning.card_parameters(each, run))["settings"] for each in (config, changed))
    assert "Rows by their squared scale" not in plain and plain["Block tuning"] == "5 epochs a group"
    assert other["Rows by their squared scale"] == "k-means"
    assert other["Block tuning"] == "5 epochs a group, to the unquantised model's outputs"


def test_all_faults_are_told_at_once() -> None:
    values = default()
    values["threads"] = 0
    values["quantization"]["oaem"] = {"rounds": -1}
    with pytest.raises(UserError) as error:
        parse(values)
    assert "2 faults" in str(error.value)
    assert "threads" in str(error.value)
    assert "quantization.oaem.rounds" in str(error.value)


def test_not_yaml_is_told(tmp_path: Path) -> None:
    for text, message in [("a: [", "cannot be read as YAML"), ("- a", "expected a mapping")]:
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            load(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "absent.yaml")


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    values = yaml.safe_load(Path("config/paper.yaml").read_text(encoding="utf-8"))
    values["pv"] |= {"gpus": 3, "batch_size": 32}
    with pytest.raises(UserError, match=r"pv: gpus: 3 does not divide batch_size: 32"):
        parse(values)


@pytest.mark.parametrize(
    ("device", "granted", "there", "told"),
    [
        ("cuda", 1, None, r"Snakemake may use 1 at once \(--resources gpu=2\)"),
        ("cuda", None, "0", r"this machine has 1"),
        ("cuda", 8, "", r"this machine has 0"),
        ("auto", 1, "0", r"this machine has 1"),
        ("cuda", 2, "0,1", None),
        ("auto", None, "", None),
        ("cpu", 1, "0", None),
    ],
)
def test_too_few_gpus_are_told_of_before_the_first_job(
    device: str, granted: int | None, there: str | None, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = yaml.safe_load(Path("config/paper.yaml").read_text(encoding="utf-8"))
    config = parse({**values, "device": device, "pv": {**values["pv"], "gpus": 2}})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if there is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", there)
    if told is None:
        enough_gpus(config, granted, local=True)
        return
    with pytest.raises(UserError, match=rf"^pv\.gpus: 2 GPUs are to tune one model together, but {told}"):
        enough_gpus(config, granted, local=True)


def test_ranks_ask_for_a_gpu_and_threads_each() -> None:
    values = yaml.safe_load(Path("config/paper.yaml").read_text(encoding="utf-8"))
    for device, memory in (("cuda", 96000 + 3 * 24000), ("cpu", 4 * 7000)):
        config = parse({**values, "device": device, "pv": {**values["pv"], "gpus": 4}})
        assert (planning.ranks(config), planning.tuning_memory(config)) == (4, memory)
