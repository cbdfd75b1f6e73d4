"""A disk that fills up under a job: one message that names the file and what to do; with room made, the same bytes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.pipeline import RUN, Arguments, Pipeline
from tests.reliability import MESSAGE, SAME

MEGABYTES = 64


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A small disk of its own at `folder`."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted; run `unshare -rm python -m pytest tests/faults`")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, free: int) -> Path:
    """A file that leaves `free` bytes on the disk of `folder`."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        file.truncate(0)
        rest = shutil.disk_usage(folder).free - free
        file.write(b"\0" * rest)
    return filler


def job_of(pipeline: Pipeline, name: str) -> tuple[Arguments, str]:
    """A job and where under `results` it writes."""
    jobs = {
        "model": (pipeline.model(), "models"),
        "tokens": (pipeline.tokens("eval-far"), "tokens/tiny/eval-far.safetensors"),
        "quantize": (pipeline.quantize(), f"{RUN}/blocks"), "pv_tune": (pipeline.pv_tune(), f"{RUN}/pv"),
        "perplexity": (pipeline.perplexity("pre_pv"), f"{RUN}/metrics/pre_pv-perplexity.json"),
    }  # fmt: skip
    arguments, place = jobs[name]
    return arguments, f"results/{place}"


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def artefacts(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every finished artefact under `folder`; what only a running job needs is none.

    A block without its report is not finished.
    """
    found = [path for path in sorted(folder.rglob("*.safetensors")) if path.name[0] != "."]
    found = [path for path in found if not {"activations", "resume", "epochs"} & set(path.parts)]
    found = [path for path in found if path.parent.name != "blocks" or path.with_suffix(".json").exists()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in artefacts(folder).items()}


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("job", ["model", "tokens", "quantize", "pv_tune", "perplexity"])
@pytest.mark.fault("full disk", "a job fills a small disk with results and logs on it", f"{MESSAGE}; then {SAME}")
def test_full_disk(whole: Pipeline, tmp_path: Path, job: str, share: float) -> None:
    with disk(tmp_path / "disk") as folder:
        shutil.copytree(whole.folder / "results", folder / "results")
        pipeline = Pipeline(folder, whole.values)
        arguments, place = job_of(pipeline, job)
        needed = size(folder / place)
        remove(folder / place)
        filler = fill(folder, int(share * needed))
        before = artefacts(folder)

        code, output = pipeline.run(arguments)
        assert code == 1, output
        assert "no space left on the device" in output or "Free some space" in output
        assert place.removesuffix("/blocks") in output, output
        assert "Traceback" not in output and "unexpected" not in output, output
        after = artefacts(folder)
        assert {name: after.get(name) for name in before} == before, "something valid is gone or was made again"

        filler.unlink()
        pipeline.make(arguments)
        assert contents(folder) == contents(whole.folder)
        again = artefacts(folder)
        assert {name: again[name] for name in after} == after, "what was finished was made again"
        assert pipeline.litter() == []
