"""Which norms and gates the fused kernels serve while a block is tuned on a CUDA device, as spies see it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor


class FusedCalls:
    """The offsets of fused norms and the activations of fused gates, in the order of their calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from oaem.quantization.kernels.cuda import gated, mixed_precision

        self.norms: list[int] = []
        self.gates: list[str] = []
        norm, gate = mixed_precision.rms_norm, gated.gated

        def spy_on_norm(inputs: Tensor, weight: Tensor, epsilon: float, offset: int) -> Tensor:
            self.norms.append(offset)
            return norm(inputs, weight, epsilon, offset)

        def spy_on_gate(*arguments: Any) -> Tensor:
            self.gates.append(arguments[2])
            return gate(*arguments)

        monkeypatch.setattr(mixed_precision, "rms_norm", spy_on_norm)
        monkeypatch.setattr(gated, "gated", spy_on_gate)

    def hold(self, family: str) -> None:
        """Every norm of every pass through a block of `family` was fused, and its gate but for Phi-3's."""
        passes = len(self.norms) // {"gemma3_text": 6, "qwen3": 4, "olmo2": 4}.get(family, 2)
        assert passes > 0
        gemma = family == "gemma3_text"
        assert self.norms == len(self.norms) * [int(gemma)]
        # Phi-3's gate and up projections are one linear: it computes another thing than the kernel.
        assert self.gates == (0 if family == "phi3" else passes) * ["gelu_tanh" if gemma else "silu"]
