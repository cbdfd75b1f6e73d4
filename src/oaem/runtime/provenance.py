"""Where a number came from: versions, device, commit, and a fingerprint of the code that computed it."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from oaem.runtime.processor import processor

PACKAGES = ("torch", "transformers", "safetensors", "numba", "triton", "datasets", "lm-eval", "snakemake", "oaem")
SOURCE = Path(__file__).resolve().parents[1]

# What decides bits on a CPU beside its kind: by name, what asks the module that knows, which puts it here.
FACTS_OF_A_CPU: dict[str, Callable[[], str]] = {}

# Where the code of each stage begins. What its numbers depend on is all that these modules import, and so on.
STAGES: Mapping[str, tuple[str, ...]] = {
    "model": ("models.source",),
    "tokens": ("corpora.tokens",),
    "stream": ("calibration.stream",),
    "quantization": ("calibration.sequential",),
    "pv": ("pv.job",),
    "perplexity": ("evaluation.domains", "evaluation.stages"),
    "downstream": ("evaluation.downstream", "evaluation.stages"),
    "exchange": ("evaluation.exchange", "evaluation.stages"),
    "directions": ("evaluation.directions", "evaluation.stages"),
    "error_exchange": ("evaluation.error_exchange", "evaluation.stages"),
}
# Rooms and modules on which no number depends: settings travel as values, the rest moves bytes about.
PLUMBING = (
    "config.licences",
    "config.model_source",
    "config.schema",
    "config.settings",
    "config.grid",
    "errors",
    "evaluation.metrics",
    "measurements",
    "models.hub",
    "models.hub_files",
    "planning",
    "runtime.atomic",
    "runtime.devices",
    "runtime.digest",
    "runtime.heap",
    "runtime.jobs",
    "runtime.locks",
    "runtime.progress",
    "runtime.provenance",
    "runtime.ranks",
    "runtime.temporary",
)
# A model is copied as it is or converted from a package; these only read what came.
NOT_IN_A_MODEL = ("models.families", "models.load", "models.skeleton", "models.tensors")
_NAME = re.compile(r"oaem\.(\w+(?:\.\w+)*)")


@cache
def source_fingerprint(stage: str) -> str:
    """A hash of the code that decides the numbers of `stage`; comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for module in modules_of(stage):
        digest.update(module.encode())
        digest.update(_parsed(_file(module).read_text(encoding="utf-8"))[0].encode())
    return digest.hexdigest()[:16]


def modules_of(stage: str) -> list[str]:
    """The modules of this library whose code the numbers of `stage` depend on, such as quantization.kmeans."""
    passed_over = PLUMBING + (NOT_IN_A_MODEL if stage == "model" else ())
    found: set[str] = set()
    ahead = list(STAGES[stage])
    while ahead:
        module = ahead.pop()
        if module in found or any(f"{module}.".startswith(f"{name}.") for name in passed_over):
            continue
        found.add(module)
        ahead += [name for name in _parsed(_file(module).read_text(encoding="utf-8"))[1] if _file(name).is_file()]
    return sorted(found)


def _file(module: str) -> Path:
    return SOURCE / f"{module.replace('.', '/')}.py"


@cache
def _parsed(text: str) -> tuple[str, frozenset[str]]:
    """What code does, however it is written down: its syntax tree without docstrings; and the `_names` in it."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body.pop(0)
    return ast.dump(tree), _names(tree)


def _names(tree: ast.AST) -> frozenset[str]:
    """What may be a module of this library that code imports, anywhere, or names in a string, as it does kernels."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value.partition(":")[0])
    return frozenset(match.group(1) for match in map(_NAME.fullmatch, names) if match)


def fingerprint(value: Any) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def checksum(path: Path | str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def collect(
    device: str, *, settings: Mapping[str, Any] | None = None, code: str | None = None, seed: int | None = None
) -> dict[str, Any]:
    """Versions, machine, device and commit of this process, and what its job was told: settings, code, seed.

    On a CPU also its kind and the library of float32 products, which decide bits. Settings are kept as a fingerprint,
    code is one already; a job without a seed of its own has null.
    """
    job = {} if settings is None else {"settings": fingerprint(settings), "code": code, "seed": seed}
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        **_processor_facts(device),
        "commit": commit(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **job,
    }


def _processor_facts(device: str) -> dict[str, str]:
    """What a job on the CPU ran on, and what the modules it has loaded say of themselves."""
    if device != "cpu":
        return {}
    return {"processor": processor().kind} | {name: fact() for name, fact in FACTS_OF_A_CPU.items()}


@cache
def versions() -> dict[str, str]:
    """Installed versions of the packages that matter, without importing any."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def plugin_version(group: str, name: str) -> str | None:
    """The package and version that the entry point `name` of `group` comes from; None if no package has one."""
    for point in metadata.entry_points(group=group, name=name):
        return None if point.dist is None else f"{point.dist.name} {point.dist.version}"
    return None


def device_name(device: str) -> str:
    """The device as a person knows it."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return processor().name


@cache
def commit() -> str | None:
    """Commit of the source tree, with a plus sign if it has changes; None outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(SOURCE), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
