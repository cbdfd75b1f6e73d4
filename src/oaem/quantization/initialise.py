"""A layer's first codebooks and codes: one codebook after the other, each fitted to the rest (sections 3.3 and 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Protocol

import torch
from torch import Tensor

from oaem.config.geometry import Geometry
from oaem.config.settings import LayerSettings, RowWeights
from oaem.quantization.initialisations import refinement
from oaem.quantization.kmeans import kmeans
from oaem.quantization.oaem import hessian_blocks
from oaem.quantization.weight import AdditiveWeight, normalised_groups, row_scales_of
from oaem.runtime.seeds import generator

# What an initialisation does to one codebook between its k-means and the residual of the next codebook:
# (vectors [in/g, out, g], damped hessian blocks [in/g, g, g], centroids [K, g], codes int32 [in/g, out], settings)
# -> (centroids, codes) of the same shapes. One with a further argument `row_weights`, as OA-EM has, is given the
# weights of the rows [out] where `settings.oaem.row_weights` asks for any.
Refine = Callable[..., tuple[Tensor, Tensor]]


class Clock(Protocol):
    """Something that times phases."""

    def phase(self, name: str) -> AbstractContextManager[object]:
        """A context whose duration counts as `name`."""


def greedy(
    vectors: Tensor, blocks: Tensor, centroids: Tensor, codes: Tensor, settings: LayerSettings
) -> tuple[Tensor, Tensor]:
    """The codebook as k-means left it."""
    return centroids, codes


@torch.no_grad()
def initialise(
    name: str,
    weight: Tensor,
    hessian: Tensor,
    geometry: Geometry,
    settings: LayerSettings,
    seed: int,
    clock: Clock | None = None,
) -> AdditiveWeight:
    """Codes, codebooks and row scales for `weight` [out, in] under `hessian` [in, in], both float32.

    Codebook m is fitted to what codebooks 1..m-1 left over. UserError if `name` is unknown.
    """
    refine: Refine = refinement(name)
    row_scales = row_scales_of(weight)
    residual = normalised_groups(weight, row_scales, geometry.group_size).transpose(0, 1).contiguous()
    blocks = hessian_blocks(hessian, geometry.group_size, settings.oaem.damping)
    row_weights = _row_weights(settings.kmeans.row_weights, row_scales)
    weights = None if row_weights is None else row_weights.repeat(len(residual))
    options = _options(refine, _row_weights(settings.oaem.row_weights, row_scales))
    all_codes, codebooks = [], []
    for m in range(geometry.num_codebooks):
        with phase(clock, "kmeans"):
            stream = generator(seed, "kmeans", m)
            centroids, flat = kmeans(residual.flatten(0, 1), geometry.codebook_size, settings.kmeans, stream, weights)
        with phase(clock, "oaem"):
            centroids, codes = refine(residual, blocks, centroids, flat.view(residual.shape[:2]), settings, **options)
        residual = residual - centroids[codes.long()]
        codebooks.append(centroids)
        all_codes.append(codes.T)
    return AdditiveWeight(torch.stack(all_codes, dim=-1), torch.stack(codebooks), row_scales)


def squared_scale_weights(row_scales: Tensor) -> Tensor:
    """What the error of a row [out] counts in row-normalised space, w_o = s_o^2 / mean of s^2, one on average -> [out].

    Codebooks describe W / s, so the output error of group j of row o is s_o^2 (v - c)^T H_j (v - c), up to what it
    shares with other groups of its row: with these weights a sum over groups is in proportion to the sum over weights.
    """
    squares = row_scales.double().square()
    return (squares / squares.mean()).to(row_scales.dtype)


def _row_weights(choice: RowWeights, row_scales: Tensor) -> Tensor | None:
    return None if choice == "uniform" else squared_scale_weights(row_scales)


def _options(refine: Refine, row_weights: Tensor | None) -> dict[str, Tensor]:
    """The weights of the rows for a refinement that weighs rows; greedy and most plug-ins do not."""
    if row_weights is None or "row_weights" not in signature(refine).parameters:
        return {}
    return {"row_weights": row_weights}


def phase(clock: Clock | None, name: str) -> AbstractContextManager[object]:
    """The clock's phase, or a context that does nothing without a clock."""
    return nullcontext() if clock is None else clock.phase(name)
