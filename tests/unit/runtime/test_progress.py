"""Progress and phases."""

from oaem.runtime.progress import PhaseClock, Progress, duration


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
