"""The continuous part of the alternating optimisation: codebooks and row scales with the codes fixed (section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from oaem.config.settings import CodebookSettings
from oaem.numerics.fast_paths import fast_path
from oaem.numerics.product import matrix_product
from oaem.quantization.clusters import cluster_sums
from oaem.quantization.layer_loss import LayerLoss
from oaem.quantization.weight import sum_of_entries

# Conjugate-gradient iterations between two updates of the scales.
CG_CYCLE = 10


def layer_optimizer(codebooks: Tensor, row_scales: Tensor, settings: CodebookSettings) -> torch.optim.Optimizer:
    """The one Adam (AMSGrad) that serves all epochs of a layer."""
    betas = (settings.beta1, settings.beta2)
    return torch.optim.Adam([codebooks, row_scales], lr=settings.lr, betas=betas, amsgrad=True)


@fast_path(
    "cuda",
    "oaem.quantization.kernels.cuda.codebook_steps:adam_steps_triton",
    when=lambda problem, *rest: type(problem) is not LayerLoss,  # but one of the kernels
)
def adam_steps(
    problem: LayerLoss,
    codebooks: Tensor,
    row_scales: Tensor,
    optimizer: torch.optim.Optimizer,
    steps: int,
    accept: Callable[[float], bool],
) -> bool:
    """Take `steps` Adam steps in place unless `accept` refuses the loss before the first; says if it took them."""
    for step in range(steps):
        loss, codebooks.grad, row_scales.grad = problem.value(codebooks, row_scales)
        if step == 0 and not accept(float(loss)):
            return False
        optimizer.step()
    return True


@torch.no_grad()
def cg_steps(
    problem: LayerLoss, codebooks: Tensor, row_scales: Tensor, steps: int, accept: Callable[[float], bool]
) -> bool:
    """Minimise over codebooks by conjugate gradients and over scales in closed form, in place, with `steps` products.

    Like `adam_steps` otherwise. It keeps the unscaled matrix V and its product V H current, so that the scales'
    minimiser s = (w H v) / (v H v) and a fresh gradient cost no product; V H and W H take two of the products.
    """
    scale_of = 2 / len(problem.weight)
    entries = sum_of_entries(problem.codes, codebooks)
    entries_product = matrix_product(entries, problem.hessian)
    weight_product = matrix_product(problem.weight, problem.hessian)
    difference = entries * row_scales[:, None] - problem.weight
    product = entries_product * row_scales[:, None] - weight_product
    if not accept(float(torch.sum(product * difference, dtype=torch.float64)) / len(problem.weight)):
        return False
    inverse = _block_inverse(problem, row_scales)
    for iteration in range(steps - 2):
        if iteration % CG_CYCLE == 0:
            _solve_scales(row_scales, entries, entries_product, weight_product)
            squares = row_scales.square()[:, None]
            gradient = entries_product * squares - weight_product * row_scales[:, None]
            missing = -scale_of * problem.gather(gradient)
            direction = _apply(inverse, missing)
            decrease = torch.sum(missing * direction, dtype=torch.float64)
        step = sum_of_entries(problem.codes, direction)
        step_product = matrix_product(step, problem.hessian)
        curvature = scale_of * torch.sum(step * step_product * squares, dtype=torch.float64)
        if not (curvature > 0 and decrease > 0):  # Nothing left to gain, or rounding has the upper hand.
            break
        length = (decrease / curvature).to(codebooks.dtype)
        codebooks += length * direction
        entries += length * step
        entries_product += length * step_product
        missing -= length * scale_of * problem.gather(step_product * squares)
        scaled = _apply(inverse, missing)
        decrease, before = torch.sum(missing * scaled, dtype=torch.float64), decrease
        direction = scaled + (decrease / before).to(codebooks.dtype) * direction
    _solve_scales(row_scales, entries, entries_product, weight_product)
    return True


def _solve_scales(row_scales: Tensor, entries: Tensor, entries_product: Tensor, weight_product: Tensor) -> None:
    """Set each row's scale to its minimiser; a row whose output does not depend on it keeps its scale."""
    energy = (entries * entries_product).sum(1)
    row_scales.copy_(torch.where(energy > 0, (entries * weight_product).sum(1) / energy, row_scales))


def _block_inverse(problem: LayerLoss, row_scales: Tensor) -> Tensor:
    """The inverse of each entry's own block of the second derivative [M, K, g, g]: the preconditioner."""
    groups, codebook_size = problem.codes.shape[1], problem.codebook_size
    group_size = len(problem.hessian) // groups
    tiles = problem.hessian.unflatten(0, (-1, group_size)).unflatten(2, (-1, group_size))
    blocks = tiles.diagonal(dim1=0, dim2=2).permute(2, 0, 1).double().flatten(1)
    weights = row_scales.double().square()[:, None].expand(-1, groups).reshape(-1, 1)
    offsets = codebook_size * torch.arange(groups, device=problem.codes.device)
    inverses = []
    for m in range(problem.codes.shape[2]):
        labels = (problem.codes[..., m] + offsets).flatten()
        counts = cluster_sums(labels, groups * codebook_size)(weights).view(groups, codebook_size)
        curvature = (counts.T @ blocks).unflatten(1, (group_size, group_size)) * (2 / len(problem.weight))
        inverses.append(torch.linalg.pinv(curvature, hermitian=True))
    return torch.stack(inverses).to(problem.weight.dtype)


def _apply(inverse: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("mkij,mkj->mki", inverse, vectors)
