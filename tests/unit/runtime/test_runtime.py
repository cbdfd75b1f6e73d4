"""Atomic files, named seeds, progress, device slots, provenance."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from oaem.errors import UserError
from oaem.runtime import provenance, seeds
from oaem.runtime.atomic import atomic_path, read_json, write_json, write_text
from oaem.runtime.devices import _free_slot, _visible, claim_device, require_disk
from oaem.runtime.progress import PhaseClock, Progress, duration


def test_streams_derive_from_names_not_from_order() -> None:
    first = torch.rand(3, generator=seeds.generator(42, "kmeans", 7))
    seeds.generator(42, "something", "else")
    assert torch.equal(first, torch.rand(3, generator=seeds.generator(42, "kmeans", 7)))
    names = [(42, "a"), (43, "a"), (42, "b"), (42, "a", 1), (42, "a", "1"), (42, 1, "a")]
    assert len({seeds.derive(*name) for name in names}) == len(names)


def test_seeds_are_the_same_everywhere() -> None:
    # A changed derivation would silently change every result: this number is part of the contract.
    assert seeds.derive(42, "beam", 0) == 8946348826448503104


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_two_writers_never_mix(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    texts = [letter * 200_000 for letter in "abcd"]
    writers = [threading.Thread(target=write_text, args=(target, text)) for text in texts * 3]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert target.read_text() in texts


def test_damaged_json_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json.*delete it"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"x": float("nan")})


def test_progress_estimates_and_ends() -> None:
    lines: list[str] = []
    progress = Progress("blocks", 3, every=0.0, report=lines.append)
    for _ in range(3):
        progress.step("note")
    assert len(lines) == 3
    assert "1/3, about" in lines[0]
    assert "3/3, took" in lines[-1]
    assert [duration(s) for s in (42, 425, 11520)] == ["42 s", "7 min 05 s", "3 h 12 min"]


def test_phases_add_up() -> None:
    clock = PhaseClock()
    for _ in range(2):
        with clock.phase("a"):
            pass
    assert list(clock.seconds) == ["a"]
    assert clock.seconds["a"] > 0


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


def test_the_fingerprint_sees_code_and_nothing_else() -> None:
    base = "def f(x):\n    return x + 1\n"
    same = '"""Doc."""\n# why\ndef f(x):\n    """Adds."""\n    return (x +\n        1)\n'
    other = base.replace("1", "2")
    assert provenance._essence(base) == provenance._essence(same)
    assert provenance._essence(base) != provenance._essence(other)
    assert len(provenance.source_fingerprint("quantization")) == 16


def test_provenance_names_versions_and_device() -> None:
    facts = provenance.collect("cpu")
    assert facts["versions"]["torch"]
    assert facts["device"]
    assert facts["products"] in ("torch", "onednn")


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
