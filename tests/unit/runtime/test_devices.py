"""Device slots and disk space."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oaem.errors import UserError
from oaem.runtime.devices import _free_slot, _visible, claim_device, require_disk


def test_slots_are_exclusive_and_survive_a_crash(tmp_path: Path) -> None:
    holder = "import sys, time; from pathlib import Path; from oaem.runtime.devices import _free_slot\n"
    holder += f"with _free_slot(Path({str(tmp_path)!r}), 2, 1) as slot: print(slot, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "0"
    with _free_slot(tmp_path, 2, 1) as second:
        assert second == 1
    process.kill()
    process.wait()
    with _free_slot(tmp_path, 2, 1) as again:
        assert again == 0


def test_cuda_without_a_gpu_is_refused_by_name(tmp_path: Path) -> None:
    with claim_device("cpu", tmp_path) as device:
        assert device == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"), claim_device("cuda", tmp_path):
            pass


def test_too_little_disk_is_refused(tmp_path: Path) -> None:
    require_disk(tmp_path, 1, "a byte")
    with pytest.raises(UserError, match=r"needs 1000000000\.0 GB"):
        require_disk(tmp_path, 10**18, "everything")


def test_jobs_of_a_cluster_do_not_share_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for job, visible in [(None, None), (None, "0,1"), ("7", "0"), ("8", "0"), ("8", "1")]:
        for key, value in [("SLURM_JOB_ID", job), ("CUDA_VISIBLE_DEVICES", visible)]:
            if value is None:
                monkeypatch.delenv(key, raising=False)
            else:
                monkeypatch.setenv(key, value)
        names.add(_visible())
    assert len(names) == 5
    assert not any("/" in name or "," in name for name in names)
