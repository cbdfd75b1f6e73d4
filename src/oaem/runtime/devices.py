"""Devices: which ones a job takes, so that jobs on one machine share a GPU by agreement and never by accident."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from oaem.errors import UserError
from oaem.runtime.locks import try_lock

log = logging.getLogger(__name__)
T = TypeVar("T")
POLL_SECONDS = 0.5
# Says how many jobs may share one GPU: from the workflow to its jobs, since no number depends on it.
JOBS_PER_GPU = "OAEM_JOBS_PER_GPU"


@contextmanager
def claim_devices(wanted: str, locks: Path, count: int = 1) -> Iterator[list[str]]:
    """`count` torch device names, all `cpu` or `cuda:N`, held for the body of the block; a single GPU is made current.

    GPU numbers are handed out by file locks in `locks`. The kernel drops a lock with the process that held it, so a
    crashed job leaves no stale slot. The GPUs of a SLURM job are its own and shared with no other job's. Who asks for
    several gets whole ones.

    `wanted` is auto, cpu or cuda; UserError if cuda is wanted and there is none, or too few.
    """
    import torch

    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        yield ["cpu"] * count
        return
    if not torch.cuda.is_available():
        raise UserError(
            "device: the configuration asks for cuda, but PyTorch sees no GPU. Set `device: auto` or `cpu`, or check "
            "the driver (nvidia-smi) and that the installed PyTorch is a CUDA build."
        )
    there = torch.cuda.device_count()
    if count > there:
        raise UserError(too_few(count, f"PyTorch sees {there}"))
    with _free_gpus(locks / _visible(), there, jobs_per_gpu(), count) as gpus:
        if count == 1:
            torch.cuda.set_device(gpus[0])
        yield [f"cuda:{gpu}" for gpu in gpus]


def too_few(count: int, found: str) -> str:
    """What to tell a user whose job wants more GPUs than there are."""
    return (
        f"pv.gpus: {count} GPUs are to tune one model together, but {found}. Lower pv.gpus, or take a machine that has "
        "so many; CUDA_VISIBLE_DEVICES or a scheduler may hide some."
    )


def peak_memory(device: str) -> int | None:
    """The most bytes that tensors of this process have held on a GPU at once; None if there were none, as on a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(device)) or None


def gpus_present() -> int | None:
    """How many GPUs this process may see, without asking CUDA; None where NVIDIA's driver does not list them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip()])
    listed = Path("/proc/driver/nvidia/gpus")
    return len(list(listed.iterdir())) if listed.is_dir() else None


def jobs_per_gpu() -> int:
    """How many jobs may share one GPU; a SLURM job's own GPUs are shared with no other's."""
    return 1 if "SLURM_JOB_ID" in os.environ else int(os.environ.get(JOBS_PER_GPU, "1"))


def _visible() -> str:
    """A folder name for the set of GPUs this process may see, on this host.

    A SLURM job has its GPUs to itself, and where devices are constrained each job sees its own as number 0: so the
    job's number is part of the name.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all") or "all"
    parts = [os.uname().nodename, os.environ.get("SLURM_JOB_ID", "local"), *visible.split(",")]
    return "-".join("".join(c for c in part if c.isalnum()) for part in parts)


@contextmanager
def _free_gpus(folder: Path, there: int, share: int, count: int = 1) -> Iterator[list[int]]:
    """The numbers of `count` of the GPUs that are `there`, each of which has a place for `share` jobs.

    One is that with the most free places, so with the fewest jobs; of several all places are taken. Only who has the
    turn waits for a GPU, and all others wait for the turn and hold nothing: so no two can wait for each other, and one
    who collects several is not overtaken for ever by those who need one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = [(gpu, place) for place in range(share) for gpu in range(there)]
    taken: list[tuple[int, int]] = []
    with ExitStack() as held:
        files = {spot: held.enter_context((folder / f"gpu{spot[0]}-{spot[1]}.lock").open("w")) for spot in places}

        def collect() -> list[int]:
            taken.extend(spot for spot in places if spot not in taken and try_lock(files[spot].fileno()))
            free = Counter(gpu for gpu, _ in taken)
            if count == 1:
                return [max(sorted(free), key=free.__getitem__)] if free else []
            whole = [gpu for gpu in range(there) if free[gpu] == share]
            return whole[:count] if len(whole) >= count else []

        with (folder / "turn.lock").open("w") as turn:
            waiting = f"{len(places)} places on {there} GPUs, too few of them are free; waiting for {count}"
            _until(lambda: try_lock(turn.fileno()), waiting)
            gpus = _until(collect, waiting)
            kept = [spot for spot in taken if spot[0] in gpus]
            for spot in taken:
                if spot not in (kept[:1] if count == 1 else kept):
                    files[spot].close()
        yield gpus


def _until(found: Callable[[], T], waiting: str) -> T:
    """What `found` returns as soon as it is something; that it takes its time is logged once."""
    result = found()
    if not result:
        log.info("%s", waiting)
    while not result:
        time.sleep(POLL_SECONDS)
        result = found()
    return result


def require_disk(folder: Path, needed: int, purpose: str) -> None:
    """UserError unless the file system of `folder` has `needed` bytes free."""
    folder.mkdir(parents=True, exist_ok=True)
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if free < needed:
        raise UserError(
            f"{folder}: {purpose} needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free. Free some space, "
            "or make the folder a link to one on a larger disk; then run the same command again."
        )
