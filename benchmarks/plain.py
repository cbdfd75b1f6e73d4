"""The plain formulas in place of the fast paths, for comparisons: nothing here is for users of the library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from oaem.config.settings import OaemSettings
from oaem.quantization import (
    beam_search,
    block_tuning,
    initialise,
    kmeans,
    layer,
    linear,
    weight,
)

SCORES_AT_ONCE = 2**26


@contextmanager
def plain_paths() -> Iterator[None]:
    """Quantise by plain torch in float32 alone: no compiled kernel, no reduced precision, no shortcut.

    k-means and OA-EM score every vector against every entry, and k-means sums in float64; OA-EM's M-step runs Adam on
    the loss itself through autograd; codebook steps and block tuning differentiate the dense formula; the beam search
    is `beam_search_reference`.
    """
    replaced: list[tuple[Any, str, Any]] = [
        (kmeans, "best_entry_sums", best_entry_sums),
        (kmeans, "best_entries", best_entries),
        (initialise, "oaem_refine", oaem_refine),
        (layer, "LayerLoss", LayerLoss),
        (layer, "beam_search", beam_search.beam_search_reference),
        (weight, "dequantize", dequantize),
        (linear, "dequantize", dequantize),
        *PLAIN_TUNING,
    ]
    with ExitStack() as stack:
        for module, name, plain in replaced:
            stack.enter_context(patch.object(module, name, plain))
        yield


@contextmanager
def plain_block_tuning() -> Iterator[None]:
    """Block tuning in float32, each operation by itself."""
    with ExitStack() as stack:
        for module, name, plain in PLAIN_TUNING:
            stack.enter_context(patch.object(module, name, plain))
        yield


PLAIN_TUNING: list[tuple[Any, str, Any]] = [
    (block_tuning, "mixed_precision", nullcontext),
    (block_tuning, "Recorded", lambda step: step),
]


def best_entries(vectors: Tensor, maps: Tensor, offsets: Tensor) -> Tensor:
    """As `clusters.best_entries`."""
    codes = []
    for part, table, offset in zip(vectors, maps, offsets, strict=True):
        step = SCORES_AT_ONCE // len(offset)
        codes.append(torch.cat([(piece @ table + offset).argmin(1) for piece in part.split(step)]))
    return torch.stack(codes).to(torch.int32)


def best_entry_sums(vectors: Tensor, maps: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """As `clusters.best_entry_sums`."""
    size = len(offsets)
    labels = best_entries(vectors[None], maps[None], offsets[None])[0].long()
    sums = torch.zeros(size, vectors.shape[1], dtype=torch.float64, device=vectors.device)
    step = SCORES_AT_ONCE // size
    for piece, chosen in zip(vectors.double().split(step), labels.split(step), strict=True):
        sums += functional.one_hot(chosen, size).double().T @ piece
    return sums.float(), torch.bincount(labels, minlength=size)


def oaem_refine(
    vectors: Tensor, blocks: Tensor, centroids: Tensor, codes: Tensor, settings: OaemSettings, exact: bool
) -> tuple[Tensor, Tensor]:
    """As `oaem.oaem_refine` with Adam: the mean over all vectors of (v - c)^T H_j (v - c), term by term."""
    if exact:
        raise NotImplementedError("the plain OA-EM takes Adam steps only")

    def distances(difference: Tensor) -> Tensor:
        return (difference @ blocks * difference).sum(-1)

    for _ in range(settings.rounds):
        with torch.enable_grad():
            centroids = centroids.clone().requires_grad_()
            optimizer = torch.optim.Adam([centroids], lr=settings.lr)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps, settings.final_lr)
            for _ in range(settings.steps):
                optimizer.zero_grad()
                distances(vectors - centroids[codes.long()]).mean().backward()
                optimizer.step()
                schedule.step()
        centroids = centroids.detach()
        lowest = torch.full(codes.shape, float("inf"), device=codes.device)
        codes = codes.clone()
        for k, centroid in enumerate(centroids):
            distance = distances(vectors - centroid)
            better = distance < lowest
            lowest, codes = torch.where(better, distance, lowest), codes.masked_fill(better, k)
    return centroids, codes


def dequantize(codes: Tensor, codebooks: Tensor, row_scales: Tensor) -> Tensor:
    """As `weight.dequantize`, left to autograd."""
    groups = torch.stack([book[codes[..., m].long()] for m, book in enumerate(codebooks)]).sum(0)
    return groups.flatten(1) * row_scales[:, None]


class LayerLoss:
    """As `codebook_steps.LayerLoss`, for Adam."""

    def __init__(self, weight: Tensor, hessian: Tensor, codes: Tensor, codebook_size: int):
        self.weight, self.hessian, self.codes = weight, hessian, codes

    def value(self, codebooks: Tensor, row_scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and its gradients by autograd."""
        with torch.enable_grad():
            parts = [part.detach().requires_grad_() for part in (codebooks, row_scales)]
            difference = dequantize(self.codes, *parts) - self.weight
            loss = torch.sum(difference @ self.hessian * difference) / len(self.weight)
        return loss.detach(), *torch.autograd.grad(loss, parts)
