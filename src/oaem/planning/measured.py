"""What was measured of which a plan is a multiple: blocks quantised, and an optimiser step of PV-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log

from oaem.planning import shapes
from oaem.planning.shapes import Shape


def products(shape: Shape) -> int:
    """Multiplications of a pass of the search, or of a codebook step, over a block: weights times inputs, by layer."""
    return sum(out * width * width for out, width in shape.linears())


# What a phase's seconds grow with, from one shape to another.
WORK: Mapping[str, Callable[[Shape], int]] = {
    "block_tuning": Shape.weights, "beam_search": products, "codebook_steps": products,
    "initialisation": Shape.weights, "forward": Shape.weights,
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One block that was quantised: its sizes, and seconds by phase; forward passes with storing the activations."""

    shape: Shape
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Reference:
    """Blocks measured on one device, the smallest first, and the settings that all of them were measured with."""

    tokens: int
    beam_width: int
    epochs: int
    codebooks: int
    steps: int
    tuning_steps: int
    blocks: tuple[Block, ...]
    # What a step, and what all of a phase takes in a block, however small its layers: launches, and the host.
    least_seconds_a_step: Mapping[str, float]
    least_seconds: Mapping[str, float]

    def seconds(self, phase: str, shape: Shape) -> float:
        """Estimated seconds of a phase on another shape, at the reference's settings.

        Between two measured blocks by the power of the work that joins them, for larger layers are faster for what they
        do; in proportion to the work below the smallest and above the largest.
        """
        work = WORK[phase]
        below = [block for block in self.blocks if work(block.shape) <= work(shape)]
        above = [block for block in self.blocks if work(block.shape) > work(shape)]
        if not below or not above:
            nearest = below[-1] if below else above[0]
            return nearest.seconds[phase] * work(shape) / work(nearest.shape)
        first, second = below[-1], above[0]
        power = log(second.seconds[phase] / first.seconds[phase]) / log(work(second.shape) / work(first.shape))
        return float(first.seconds[phase] * (work(shape) / work(first.shape)) ** power)


@dataclass(frozen=True)
class TuningStep:
    """Seconds of an optimiser step of PV-tuning on one GPU, its tokens, and what it takes however small the model."""

    seconds: float
    tokens: int
    least: float


# benchmarks/measured/h200-block-3b-2026-11-29.json and h200-block-70b-2026-11-29.json.
H200 = Reference(
    128 * 4096, 8, 7, 2, 100, 2560,
    (
        Block(shapes.PAPER["Llama 3B"], {
            "block_tuning": 16.25, "beam_search": 2.45, "codebook_steps": 3.29, "initialisation": 1.93, "forward": 4.53,
        }),
        Block(shapes.LLAMA_70B, {
            "block_tuning": 114.40, "beam_search": 42.34, "codebook_steps": 78.46, "initialisation": 12.31,
            "forward": 20.34,
        }),
    ),
    # SmolLM2-135M at the paper's budgets, alone on an H100: 93 s in all (docs/performance.md).
    {"codebook_steps": 0.00004, "block_tuning": 0.0005},
    {"beam_search": 0.3, "forward": 0.85, "initialisation": 0.5},
)  # fmt: skip


# docs/log.md, one thread of an AMD EPYC with bfloat16, b=4.
CPU = Reference(
    16 * 512, 4, 2, 2, 10, 0,
    (
        Block(shapes.EMBEDDED, {
            "block_tuning": 0.0, "beam_search": 2.25, "codebook_steps": 1.53, "initialisation": 0.55, "forward": 1.6,
        }),
    ),
    {}, {},
)  # fmt: skip
# On an H100: benchmarks/measured/h100-x2-pv-ranks-3b-2026-11-25.json, the 3B shape extrapolated to all blocks;
# SmolLM2-135M, from its log of docs/log.md, 2026-11-25.
PV_STEP = TuningStep(8.2, 32 * 4096, 0.5)
