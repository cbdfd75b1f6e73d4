"""Initialisations of a layer's codebooks and codes by name; more come from plug-ins (sections 3.3 and 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import entry_points
from typing import Protocol

import torch
from torch import Tensor

from oaem.config.geometry import Geometry
from oaem.config.settings import LayerSettings
from oaem.errors import UserError
from oaem.quantization.kmeans import kmeans
from oaem.quantization.oaem import hessian_blocks, oaem_refine
from oaem.quantization.weight import AdditiveWeight, normalised_groups, row_scales_of
from oaem.runtime.seeds import generator

ENTRY_POINTS = "oaem.initialisations"

# What an initialisation does to one codebook between its k-means and the residual of the next codebook:
# (vectors [in/g, out, g], damped hessian blocks [in/g, g, g], centroids [K, g], codes int32 [in/g, out], settings)
# -> (centroids, codes) of the same shapes.
Refine = Callable[[Tensor, Tensor, Tensor, Tensor, LayerSettings], tuple[Tensor, Tensor]]


class Clock(Protocol):
    """Something that times phases."""

    def phase(self, name: str) -> AbstractContextManager[object]:
        """A context whose duration counts as `name`."""


def _greedy(
    vectors: Tensor, blocks: Tensor, centroids: Tensor, codes: Tensor, settings: LayerSettings
) -> tuple[Tensor, Tensor]:
    return centroids, codes


def _oaem(
    vectors: Tensor, blocks: Tensor, centroids: Tensor, codes: Tensor, settings: LayerSettings
) -> tuple[Tensor, Tensor]:
    return oaem_refine(vectors, blocks, centroids, codes, settings.oaem, exact=False)


def _oaem_exact(
    vectors: Tensor, blocks: Tensor, centroids: Tensor, codes: Tensor, settings: LayerSettings
) -> tuple[Tensor, Tensor]:
    return oaem_refine(vectors, blocks, centroids, codes, settings.oaem, exact=True)


BUILT_IN: dict[str, Refine] = {"greedy": _greedy, "oaem": _oaem, "oaem_exact": _oaem_exact}


def known_initialisations() -> list[str]:
    """Names that `initialise` understands: the built-in ones and those of installed plug-ins."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def refinement(name: str) -> Refine:
    """The refinement called `name`; UserError if there is none, or if a plug-in cannot be loaded."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            loaded: Refine = point.load()
        except Exception as error:
            raise UserError(f"initialisation {name!r}: the plug-in {point.value} cannot be loaded: {error}") from error
        return loaded
    raise UserError(
        f"initialisation {name!r} is unknown; known are {', '.join(known_initialisations())}. More come from packages "
        f"with an entry point in the group {ENTRY_POINTS!r}."
    )


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
    refine = refinement(name)
    row_scales = row_scales_of(weight)
    residual = normalised_groups(weight, row_scales, geometry.group_size).transpose(0, 1).contiguous()
    blocks = hessian_blocks(hessian, geometry.group_size, settings.oaem.damping)
    all_codes, codebooks = [], []
    for m in range(geometry.num_codebooks):
        with phase(clock, "kmeans"):
            stream = generator(seed, "kmeans", m)
            centroids, flat = kmeans(residual.flatten(0, 1), geometry.codebook_size, settings.kmeans, stream)
        with phase(clock, "oaem"):
            centroids, codes = refine(residual, blocks, centroids, flat.view(residual.shape[:2]), settings)
        residual = residual - centroids[codes.long()]
        codebooks.append(centroids)
        all_codes.append(codes.T)
    return AdditiveWeight(torch.stack(all_codes, dim=-1), torch.stack(codebooks), row_scales)


def phase(clock: Clock | None, name: str) -> AbstractContextManager[object]:
    """The clock's phase, or a context that does nothing without a clock."""
    return nullcontext() if clock is None else clock.phase(name)
