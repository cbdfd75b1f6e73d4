"""Small random layers for the tests of fast paths, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from oaem.quantization.search_order import SearchOrder, draw_order
from oaem.quantization.weight import row_scales_of

Layer = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def toy_layer(out: int, columns: int, num_codebooks: int, nbits: int, group_size: int, device: str = "cpu") -> Layer:
    """weight, hessian, codes, codebooks and row scales in float32, for correlated inputs of different strength."""
    generator = torch.Generator().manual_seed(out + columns)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weight = randn(out, columns)
    inputs = (randn(3 * columns, columns) + randn(3 * columns, 1)) * (0.2 + randn(columns).abs())
    codebooks = randn(num_codebooks, 2**nbits, group_size) / (columns * num_codebooks) ** 0.5
    shape = (out, columns // group_size, num_codebooks)
    codes = torch.randint(0, 2**nbits, shape, generator=generator, dtype=torch.int32)
    layer = (weight, inputs.T @ inputs / len(inputs), codes, codebooks, row_scales_of(weight))
    return tuple(part.to(device) for part in layer)  # type: ignore[return-value]


def order_of(layer: Layer) -> SearchOrder:
    return draw_order(layer[2].shape[1], layer[2].shape[2], torch.Generator().manual_seed(3))


def row_errors(layer: Layer, codes: Tensor) -> Tensor:
    """(w^ - w) H (w^ - w)^T of every row [out], in float64."""
    weight, hessian, _, codebooks, row_scales = (part.double() for part in layer)
    groups = torch.stack([book[codes[..., m].long()] for m, book in enumerate(codebooks)]).sum(0)
    difference = groups.flatten(1) * row_scales[:, None] - weight
    return ((difference @ hessian) * difference).sum(1)
