"""Progress of long work: a line now and then with what is done, what is left and an estimate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("oaem.progress")


def duration(seconds: float) -> str:
    """`seconds` as a person reads them: 42 s, 7 min 05 s, 3 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Counts steps of equal size and reports at most every `every` seconds, and at the end."""

    def __init__(self, label: str, total: int, every: float = 10.0, report: Callable[[str], None] = log.info) -> None:
        self.label, self.total, self.every, self.report = label, total, every, report
        self.done = 0
        self.began = self.reported = time.monotonic()

    def step(self, note: str = "") -> None:
        """One more step is done; `note` is added to the line if one is due."""
        self.done += 1
        now = time.monotonic()
        if self.done < self.total and now - self.reported < self.every:
            return
        self.reported = now
        spent = now - self.began
        rest = spent / self.done * (self.total - self.done)
        tail = f"about {duration(rest)} left" if self.done < self.total else f"took {duration(spent)}"
        self.report(f"{self.label}: {self.done}/{self.total}, {tail}" + (f" ({note})" if note else ""))


class PhaseClock:
    """Compute seconds by phase, so that a run's quantisation time is a sum that queueing and resuming leave alone."""

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronize = synchronize or (lambda: None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds that the body takes to `name`; device work is waited for."""
        self._synchronize()
        began = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
