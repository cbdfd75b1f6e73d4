"""The placement a tuning chooses by itself, from what the machine has free."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from oaem.config.geometry import Geometry
from oaem.config.schema import PVTuning
from oaem.pv.plan import ModelShape, Plan, memory_plan
from oaem.pv.team import ALONE, Team

# What allocators round up, and what the rest of the process needs.
USABLE_DEVICE, USABLE_HOST, USABLE_DISK = 0.94, 0.85, 0.8


def automatic_plan(
    model_folder: Path,
    geometry: Geometry,
    settings: PVTuning,
    sequences: int,
    window: int,
    dtype: torch.dtype,
    device: str,
    folder: Path,
    team: Team = ALONE,
) -> Plan:
    """The fastest placement that fits what is free on `device`, on this host and on the disk of `folder`.

    dtype: of the matrix products. The ranks of a team, which share a host, agree on the one that fits where least is
    free. UserError if none fits.
    """
    shape = ModelShape.read(model_folder)
    own = free_memory() * USABLE_HOST / team.size
    on_device = torch.cuda.mem_get_info(device)[0] * USABLE_DEVICE if device.startswith("cuda") else own
    folder.mkdir(parents=True, exist_ok=True)
    on_disk = shutil.disk_usage(folder).free * USABLE_DISK
    free, host, disk = (int(min(each)) for each in zip(*team.numbers(on_device, own, on_disk), strict=True))
    memory = (free, host if device.startswith("cuda") else None)
    return memory_plan(shape, geometry, settings, sequences, window, dtype.itemsize, *memory, disk)


def free_memory() -> int:
    """Bytes of memory this process may still take: of the machine, or of the tightest limit that a job was given."""
    limits = [_machine_memory()]
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip().splitlines()[-1].split(":")[-1]
    except OSError:
        return limits[0]
    group = Path("/sys/fs/cgroup") / own.lstrip("/")
    while group.is_relative_to("/sys/fs/cgroup"):
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is not None and used is not None:
            limits.append(max(limit - used + _file_cache(group), 0))
        group = group.parent
    return min(limits)


def _machine_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _file_cache(group: Path) -> int:
    """Bytes that count as used but are given up on demand."""
    try:
        lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _number(file: Path) -> int | None:
    """The number in a control file; None if there is none, as for `max`."""
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
