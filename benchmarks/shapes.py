"""What the benchmarks share: sizes of real blocks, the geometry of two bits, a stopwatch for phases."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from oaem.config.geometry import Geometry


@dataclass(frozen=True)
class Model:
    """Sizes of a model and of its transformer blocks."""

    hidden: int
    mlp: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    blocks: int
    tied_head: bool

    def linears(self) -> dict[tuple[int, int], list[str]]:
        """The block's linear layers by their shape (out, in)."""
        keys = (self.key_heads * self.head_width, self.hidden)
        wide = (self.heads * self.head_width, self.hidden)
        shapes = {
            "q": wide, "k": keys, "v": keys, "o": (self.hidden, wide[0]),
            "gate": (self.mlp, self.hidden), "up": (self.mlp, self.hidden), "down": (self.hidden, self.mlp),
        }  # fmt: skip
        names: dict[tuple[int, int], list[str]] = {}
        for name, shape in shapes.items():
            names.setdefault(shape, []).append(name)
        return names


MODELS = {
    "llama-3.2-3b": Model(3072, 8192, 24, 8, 128, 128256, 28, True),
    "llama-3.1-8b": Model(4096, 14336, 32, 8, 128, 128256, 32, False),
    "llama-3.1-70b": Model(8192, 28672, 64, 8, 128, 128256, 80, False),
    "qwen-2.5-3b": Model(2048, 11008, 16, 2, 128, 151936, 36, True),
    "embedded": Model(576, 1536, 9, 3, 64, 49152, 30, True),
}
GEOMETRY = Geometry(2, 8, 8)


@dataclass
class Stopwatch:
    """Seconds by phase, with the device's work waited for; a clock as `initialise` takes it."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the duration of the body to `name`."""
        self.wait()
        start = time.perf_counter()
        yield
        self.wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def median(self, work: Callable[[], object], repeats: int) -> float:
        """Median seconds of `work` after one run that warms up."""
        work()
        times = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)
