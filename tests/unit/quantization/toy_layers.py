"""Small random layers and clusterings for tests, with their losses straight from the paper."""

from __future__ import annotations

import torch
from torch import Tensor

from oaem.quantization.oaem import hessian_blocks
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


def with_fixed_codes(dtype=torch.float64, out: int = 12, groups: int = 5, g: int = 4, m: int = 2, size: int = 6):
    """weight, hessian, codes, codebooks, row_scales."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, groups * g, generator=generator, dtype=torch.float64)
    inputs = torch.randn(100, groups * g, generator=generator, dtype=torch.float64) + 0.5
    codes = torch.randint(0, size, (out, groups, m), generator=generator, dtype=torch.int32)
    codebooks = torch.randn(m, size, g, generator=generator, dtype=torch.float64) * 0.2
    hessian = inputs.T @ inputs / 100
    return weight.to(dtype), hessian.to(dtype), codes, codebooks.to(dtype), weight.norm(dim=1).to(dtype)


def defined_loss(weight: Tensor, hessian: Tensor, codes: Tensor, codebooks: Tensor, row_scales: Tensor) -> Tensor:
    """tr((W^-W) H (W^-W)^T) / out through plain indexing."""
    entries = sum(codebooks[m][codes[..., m].long()] for m in range(codebooks.shape[0]))
    difference = entries.flatten(1) * row_scales[:, None] - weight
    return torch.trace(difference @ hessian @ difference.T) / len(weight)


def clustered(groups: int = 6, out: int = 40, g: int = 4, size: int = 5, seed: int = 0, dtype=torch.float64):
    """vectors [in/g, out, g], damped blocks, centroids and codes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(200, groups * g, generator=generator, dtype=torch.float64)
    inputs = (inputs + torch.randn(200, 1, generator=generator)) * (0.1 + torch.rand(groups * g, generator=generator))
    vectors = torch.randn(groups, out, g, generator=generator, dtype=torch.float64)
    centroids = torch.randn(size, g, generator=generator, dtype=torch.float64)
    codes = torch.randint(0, size, (groups, out), generator=generator, dtype=torch.int32)
    blocks = hessian_blocks(inputs.T @ inputs / 200, g, 0.01)
    return vectors.to(dtype), blocks.to(dtype), centroids.to(dtype), codes


def clustering_loss(
    vectors: Tensor, blocks: Tensor, centroids: Tensor, codes: Tensor, row_weights: Tensor | None = None
) -> Tensor:
    """mean_i w_o (v_i - c)^T H_j (v_i - c), straight from the paper, which has no weights w [out]."""
    difference = vectors - centroids[codes.long()]
    losses = torch.einsum("jng,jgh,jnh->jn", difference, blocks, difference)
    return (losses if row_weights is None else losses * row_weights).mean()
