"""Devices: which one a job takes, so that jobs on one machine share a GPU by agreement and never by accident."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oaem.errors import UserError
from oaem.runtime.locks import try_lock

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
# Says how many jobs may share one GPU: from the workflow to its jobs, since no number depends on it.
JOBS_PER_GPU = "OAEM_JOBS_PER_GPU"


@contextmanager
def claim_device(wanted: str, locks: Path) -> Iterator[str]:
    """A torch device name, `cpu` or `cuda:N`, held for the body of the block.

    GPU numbers are handed out by file locks in `locks`. The kernel drops a lock with the process that held it, so a
    crashed job leaves no stale slot. The GPUs of a SLURM job are its own and shared with no other job's.

    `wanted` is auto, cpu or cuda; UserError if cuda is wanted and there is none.
    """
    import torch

    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        yield "cpu"
        return
    if not torch.cuda.is_available():
        raise UserError(
            "device: the configuration asks for cuda, but PyTorch sees no GPU. Set `device: auto` or `cpu`, or check "
            "the driver (nvidia-smi) and that the installed PyTorch is a CUDA build."
        )
    with _free_slot(locks / _visible(), torch.cuda.device_count(), jobs_per_gpu()) as gpu:
        torch.cuda.set_device(gpu)
        yield f"cuda:{gpu}"


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
def _free_slot(folder: Path, count: int, share: int) -> Iterator[int]:
    """The number of a GPU with a free place; every GPU gets its first job before one gets its second."""
    folder.mkdir(parents=True, exist_ok=True)
    places = [(gpu, folder / f"gpu{gpu}-{place}.lock") for place in range(share) for gpu in range(count)]
    files = [(gpu, path.open("w")) for gpu, path in places]
    try:
        waited = False
        while True:
            for gpu, file in files:
                if try_lock(file.fileno()):
                    yield gpu
                    return
            if not waited:
                log.info("all %d places on %d GPUs are taken; waiting for one", len(files), count)
                waited = True
            time.sleep(POLL_SECONDS)
    finally:
        for _, file in files:
            file.close()


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
