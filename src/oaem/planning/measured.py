"""What was measured of which a plan is a multiple: a block's quantisation, and an optimiser step of PV-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oaem.planning import shapes
from oaem.planning.shapes import Shape


@dataclass(frozen=True)
class Reference:
    """Seconds of one block and what they were measured on."""

    shape: Shape
    tokens: int
    beam_width: int
    epochs: int
    codebooks: int
    steps: int
    tuning_steps: int
    seconds: Mapping[str, float]
    # What a step, and what all of a phase takes in a block, however small its layers: launches, and the host.
    least_seconds_a_step: Mapping[str, float]
    least_seconds: Mapping[str, float]


@dataclass(frozen=True)
class TuningStep:
    """Seconds of an optimiser step of PV-tuning, its tokens, and what it takes however small the model."""

    seconds: float
    tokens: int
    least: float


# benchmarks/measured/h100-block-2026-11-22b.json, b=16; forward with storing the activations.
H100 = Reference(
    shapes.PAPER["Llama 3B"], 128 * 4096, 16, 7, 2, 100, 2560,
    {"block_tuning": 22.5, "beam_search": 4.2, "codebook_steps": 5.1, "initialisation": 1.1, "forward": 6.3},
    # SmolLM2-135M at the paper's budgets, alone on the card: 93 s in all (docs/performance.md).
    {"codebook_steps": 0.00004, "block_tuning": 0.0005},
    {"beam_search": 0.3, "forward": 0.85, "initialisation": 0.5},
)  # fmt: skip


# docs/log.md, one thread of an AMD EPYC with bfloat16, b=4.
CPU = Reference(
    shapes.EMBEDDED, 16 * 512, 4, 2, 2, 10, 0,
    {"block_tuning": 0.0, "beam_search": 2.25, "codebook_steps": 1.53, "initialisation": 0.55, "forward": 1.6},
    {}, {},
)  # fmt: skip
# benchmarks/measured/h100-x2-pv-ranks-3b-2026-11-25.json, the 3B shape extrapolated to all blocks; SmolLM2-135M, from
# its log of docs/log.md, 2026-11-25.
PV_STEP = TuningStep(8.2, 32 * 4096, 0.5)
