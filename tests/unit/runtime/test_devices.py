"""Device slots and disk space."""

import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest
import torch

from oaem.errors import UserError
from oaem.runtime import devices
from oaem.runtime.devices import _free_gpus, _visible, claim_devices, gpus_present, peak_memory, require_disk


def test_slots_are_exclusive_and_survive_a_crash(tmp_path: Path) -> None:
    holder = "import sys, time; from pathlib import Path; from oaem.runtime.devices import _free_gpus\n"
    holder += f"with _free_gpus(Path({str(tmp_path)!r}), 2, 1) as slot: print(slot, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "[0]"
    with _free_gpus(tmp_path, 2, 1) as second:
        assert second == [1]
    process.kill()
    process.wait()
    with _free_gpus(tmp_path, 2, 1) as again:
        assert again == [0]


def test_who_needs_several_gets_whole_ones(tmp_path: Path) -> None:
    with _free_gpus(tmp_path, 4, 2) as shared, _free_gpus(tmp_path, 4, 2, 2) as whole:
        assert (shared, whole) == ([0], [1, 2])
        with _free_gpus(tmp_path, 4, 2) as one, _free_gpus(tmp_path, 4, 2) as two, _free_gpus(tmp_path, 4, 2) as three:
            assert (one, two, three) == ([3], [0], [3]), "a place on a GPU that was not chosen is still held"


def test_the_next_job_goes_to_the_gpu_with_the_fewest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four on each of two GPUs; three of the second and the first one's first end: its place was the first free one."""
    with ExitStack() as held:
        slots = [ExitStack() for _ in range(8)]
        gpus = [slot.enter_context(_free_gpus(tmp_path, 2, 5)) for slot in slots]
        assert gpus == [[0], [1]] * 4
        monkeypatch.delattr(time, "sleep")  # so that who would have to wait fails
        for ended in (0, 3, 5, 7):
            slots[ended].close()
        assert [held.enter_context(_free_gpus(tmp_path, 2, 5)) for _ in range(4)] == [[1], [1], [0], [1]]
        for slot in slots:
            held.enter_context(slot)
        places = [held.enter_context(_free_gpus(tmp_path, 2, 5)) for _ in range(2)]
        assert places == [[0], [1]], "each took one place and gave back what it had looked at"


def test_who_has_the_turn_gives_back_the_rest_before_it_passes_it_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gets the turn next finds every place free but one, and takes the GPU with the most without waiting."""

    def waited(_: float) -> None:
        raise AssertionError("a place was free")

    opened = Path.open

    class Turn:
        """The turn's file; as it is closed another job asks for a place."""

        def __init__(self, file: IO[str]) -> None:
            self.file = file

        def __enter__(self) -> IO[str]:
            return self.file.__enter__()

        def __exit__(self, *_: object) -> None:
            self.file.close()
            monkeypatch.setattr(Path, "open", opened)
            asked.append(next_one.enter_context(_free_gpus(tmp_path, 2, 2))[0])

    def open_turn(path: Path, *mode: str) -> object:
        return Turn(opened(path, *mode)) if path.name == "turn.lock" else opened(path, *mode)

    asked: list[int] = []
    monkeypatch.setattr(time, "sleep", waited)
    monkeypatch.setattr(Path, "open", open_turn)
    with ExitStack() as next_one, _free_gpus(tmp_path, 2, 2) as first:
        assert (first, asked) == ([0], [1])


def test_who_collects_several_is_not_overtaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are wanted while one is held: a third job waits its turn behind them, though a GPU is free."""
    monkeypatch.setattr(devices, "POLL_SECONDS", 0.005)
    order: list[str] = []
    freed = threading.Event()

    def hold(name: str, count: int) -> None:
        with _free_gpus(tmp_path, 2, 1, count) as gpus:
            order.append(f"{name} {gpus}")
            freed.wait(20)

    with ExitStack() as held:
        held.enter_context(_free_gpus(tmp_path, 2, 1))
        threads = [threading.Thread(target=hold, args=each) for each in (("pair", 2), ("single", 1))]
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        assert order == []
    while not order:
        time.sleep(0.005)
    assert order == ["pair [0, 1]"]
    freed.set()
    for thread in threads:
        thread.join(20)
    assert order == ["pair [0, 1]", "single [0]"]


def test_many_who_need_several_all_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "POLL_SECONDS", 0.001)
    busy: set[int] = set()
    done: list[int] = []

    def take(count: int) -> None:
        for _ in range(5):
            with _free_gpus(tmp_path, 3, 1, count) as gpus:
                assert len(gpus) == count and not busy & set(gpus)
                busy.update(gpus)
                time.sleep(0.001)
                busy.difference_update(gpus)
            done.append(count)

    threads = [threading.Thread(target=take, args=(count,)) for count in (1, 2, 3, 2, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(done) == 25


def test_gpus_are_counted_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for visible, count in [("0,1", 2), ("GPU-8932f937", 1), ("", 0)]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpus_present() == count


def test_cuda_without_a_gpu_is_refused_by_name(tmp_path: Path) -> None:
    with claim_devices("cpu", tmp_path, 2) as found:
        assert found == ["cpu", "cpu"]
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"), claim_devices("cuda", tmp_path):
            pass


def test_more_gpus_than_there_are_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with claim_devices("cuda", tmp_path, 2) as found:
        assert found == ["cuda:0", "cuda:1"]
    with pytest.raises(UserError, match=r"pv\.gpus: 3 GPUs .* but PyTorch sees 2"), claim_devices("auto", tmp_path, 3):
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


def test_memory_is_counted_on_a_gpu_alone() -> None:
    assert peak_memory("cpu") is None
