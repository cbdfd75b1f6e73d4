"""Quantisation of one linear layer: initialise, then alternate codebook steps and beam search (sections 3.2 to 3.4)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from oaem.config.geometry import Geometry
from oaem.config.settings import CodebookSettings, LayerSettings
from oaem.errors import UserError
from oaem.quantization.beam_search import beam_search
from oaem.quantization.codebook_steps import adam_steps, cg_steps, layer_optimizer
from oaem.quantization.initialise import Clock, initialise, phase
from oaem.quantization.layer_loss import LayerLoss, layer_loss
from oaem.quantization.search_order import draw_order
from oaem.quantization.weight import AdditiveWeight, output_error, relative_error
from oaem.runtime.seeds import generator


@dataclass(frozen=True)
class LayerResult:
    """A quantised layer. `epochs` counts beam searches; `losses` holds the loss before each epoch and the final one."""

    weight: AdditiveWeight
    relative_error: float
    epochs: int
    losses: list[float]


@dataclass
class _Progress:
    """The stopping rule: an epoch must have lowered the loss by a share of at least `tolerance`."""

    tolerance: float
    losses: list[float] = field(default_factory=list)

    def accept(self, loss: float) -> bool:
        """Note the loss before an epoch; False if it is not worth another one."""
        best = min(self.losses, default=float("inf"))
        self.losses.append(loss)
        return loss < best * (1 - self.tolerance)


@torch.no_grad()
def quantize_layer(
    weight: Tensor,
    hessian: Tensor,
    geometry: Geometry,
    *,
    init: str,
    beam_width: int,
    max_epochs: int,
    settings: LayerSettings,
    seed: int,
    clock: Clock | None = None,
) -> LayerResult:
    """The additive weight that approximates `weight` [out, in] under `hessian` [in, in], on their device, in float32.

    `seed` belongs to this linear alone. UserError if the weight or the hessian is not finite, if the groups do not
    divide `in`, or if `init` is unknown.
    """
    weight, hessian = weight.detach().float().contiguous(), hessian.detach().float().contiguous()
    _check(weight, hessian, geometry)
    state = initialise(init, weight, hessian, geometry, settings, seed, clock)
    codes, codebooks, row_scales = state.codes, state.codebooks, state.row_scales
    optimizer = layer_optimizer(codebooks, row_scales, settings.codebooks)
    progress = _Progress(settings.codebooks.relative_tolerance)
    epochs = 0
    while epochs < max_epochs:
        with phase(clock, "codebook_steps"):
            problem = layer_loss(weight, hessian, codes, geometry.codebook_size)
            goes_on = _steps(problem, codebooks, row_scales, optimizer, settings.codebooks, progress)
            del problem  # It holds matrices of the Hessian's size, and the beam search needs its own.
        if not goes_on:
            break
        with phase(clock, "beam_search"):
            order = draw_order(codes.shape[1], codes.shape[2], generator(seed, "beam", epochs))
            codes = beam_search(weight, hessian, codes, codebooks, row_scales, beam_width, order)
        epochs += 1
    result = AdditiveWeight(codes, codebooks, row_scales)
    quantized = result.dequantize()
    if epochs == max_epochs:
        progress.losses.append(output_error(quantized - weight, hessian) / len(weight))
    return LayerResult(result, relative_error(weight, quantized, hessian), epochs, progress.losses)


def _steps(
    problem: LayerLoss,
    codebooks: Tensor,
    row_scales: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: CodebookSettings,
    progress: _Progress,
) -> bool:
    if settings.solver == "cg":
        return cg_steps(problem, codebooks, row_scales, settings.steps, progress.accept)
    return adam_steps(problem, codebooks, row_scales, optimizer, settings.steps, progress.accept)


def _check(weight: Tensor, hessian: Tensor, geometry: Geometry) -> None:
    columns = weight.shape[1]
    if columns % geometry.group_size:
        raise UserError(
            f"a linear layer has {columns} input features, which groups of {geometry.group_size} do not divide "
            f"(geometry {geometry.name}); choose a group size that divides every layer's input."
        )
    if hessian.shape != (columns, columns):
        raise UserError(f"hessian of shape {list(hessian.shape)} for a layer of {columns} input features.")
    for name, tensor in (("weight", weight), ("hessian", hessian)):
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"the {name} of a linear layer holds NaN or infinity; the model is damaged or overflows on the "
                "calibration text. Check the model files and its dtype."
            )
