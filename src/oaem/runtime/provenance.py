"""Where a number came from: versions, device, commit, and a fingerprint of the code that computed it."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from oaem.runtime.processor import processor

PACKAGES = ("torch", "transformers", "safetensors", "numba", "triton", "datasets", "lm-eval", "snakemake", "oaem")
SOURCE = Path(__file__).resolve().parents[1]

# What running a stored model depends on.
RUN_ROOMS = (
    "models/load.py",
    "models/skeleton.py",
    "models/tensors.py",
    "models/precision.py",
    "models/cpu_attention.py",
    "models/attention_switch.py",
    "numerics/product.py",
    "runtime/processor.py",
    "quantization/weight.py",
    "calibration/artefacts.py",
)
# What the numbers of each stage depend on. A change of code elsewhere reruns nothing expensive.
ROOMS = {
    "quantization": (
        "quantization",
        "models/capture.py",
        "models/families.py",
        "calibration/sequential.py",
        "calibration/observation.py",
        "calibration/forward_log.py",
        "calibration/activations.py",
        "config/geometry.py",
        "numerics/chunks.py",
        "runtime/seeds.py",
        *RUN_ROOMS,
    ),
    "pv": (
        "pv",
        "evaluation/perplexity.py",
        "quantization/linear.py",
        "quantization/kernels/cpu/weight_gradients.py",
        "numerics/chunks.py",
        *RUN_ROOMS,
        "runtime/seeds.py",
    ),
    "tokens": ("corpora", "runtime/seeds.py"),
    "model": ("models/source.py", "models/embedded.py"),
    "perplexity": ("evaluation/perplexity.py", "evaluation/domains.py", "evaluation/stages.py", *RUN_ROOMS),
    "downstream": (
        "evaluation/downstream.py",
        "evaluation/downstream_embedded.py",
        "evaluation/downstream_harness.py",
        "corpora/embedded.py",
        "corpora/files.py",
        "corpora/parts.py",
        "evaluation/stages.py",
        "runtime/seeds.py",
        *RUN_ROOMS,
    ),
}


@cache
def source_fingerprint(stage: str) -> str:
    """A hash of the code that decides the numbers of `stage`; comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for file in _files(ROOMS[stage]):
        digest.update(file.relative_to(SOURCE).as_posix().encode())
        digest.update(_essence(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:16]


def _files(rooms: Iterable[str]) -> list[Path]:
    found: set[Path] = set()
    for room in rooms:
        place = SOURCE / room
        found |= {place} if place.is_file() else set(place.rglob("*.py"))
    return sorted(found)


def _essence(text: str) -> str:
    """The syntax tree of `text` without docstrings: what the code does, not how it is written down."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body.pop(0)
    return ast.dump(tree)


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
    """What a job on the CPU ran on, and which library made its float32 products, if it has loaded PyTorch at all."""
    if device != "cpu":
        return {}
    facts = {"processor": processor().kind}
    if "torch" in sys.modules:
        from oaem.numerics.product import product_library

        facts["products"] = product_library()
    return facts


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
