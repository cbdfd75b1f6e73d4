"""Which blocks of a run are done and belong together: never one that is damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from oaem.calibration import reports
from oaem.calibration.artefacts import load_block_state, write_block
from oaem.errors import UserError
from tests.unit.calibration.test_artefacts import some_state


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "report gone", "report cut", "other settings"])
def test_a_damaged_block_is_not_done(tmp_path: Path, damage: str) -> None:
    write_block(tmp_path, 3, some_state(), "f", {"seconds": {"load": 1.0}})
    assert (reports.block_report(tmp_path, 3, "f") or {})["seconds"] == {"load": 1.0}
    path = reports.block_path(tmp_path, 3)
    bytes_ = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(bytes_[:-7])
    elif damage == "flipped":
        path.write_bytes(bytes_[:-7] + bytes([bytes_[-7] ^ 1]) + bytes_[-6:])
    elif damage == "gone":
        path.unlink()
    elif damage == "report gone":
        path.with_suffix(".json").unlink()
    elif damage == "report cut":
        path.with_suffix(".json").write_text('{"fing')
    fingerprint = "g" if damage == "other settings" else "f"
    assert reports.block_report(tmp_path, 3, fingerprint) is None
    if damage in ("truncated", "flipped"):
        with pytest.raises(UserError, match=r"0003\.safetensors.*checksum"):
            load_block_state(tmp_path, 3)


def test_blocks_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    made = []
    for index, fingerprint in enumerate("aab"):
        write_block(tmp_path, index, some_state(index), fingerprint, {})
        made.append(reports.block_report(tmp_path, index, fingerprint) or {})
    reports.check_blocks(tmp_path, made[:2])
    for wrong in (made, made[1:2], [made[1], made[0]]):
        with pytest.raises(UserError, match="do not belong together"):
            reports.check_blocks(tmp_path, wrong)
    reports.block_path(tmp_path, 1).unlink()
    with pytest.raises(UserError, match="0001"):
        reports.check_blocks(tmp_path, made[:2])


def test_they_are_read_without_torch() -> None:
    """Whose import takes ten times as long as the job that checks a run's blocks."""
    program = "import sys, oaem.calibration.reports, oaem.evaluation.quantization, oaem.runtime.jobs; "
    done = subprocess.run([sys.executable, "-c", program + "sys.exit('torch' in sys.modules)"], capture_output=True)
    assert done.returncode == 0, done.stderr
