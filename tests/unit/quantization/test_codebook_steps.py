from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oaem.config.settings import CodebookSettings
from oaem.quantization.codebook_steps import LayerLoss, adam_steps, cg_steps, layer_optimizer


def case(dtype=torch.float64, out: int = 12, groups: int = 5, g: int = 4, m: int = 2, size: int = 6):
    """weight, hessian, codes, codebooks, row_scales."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, groups * g, generator=generator, dtype=torch.float64)
    inputs = torch.randn(100, groups * g, generator=generator, dtype=torch.float64) + 0.5
    codes = torch.randint(0, size, (out, groups, m), generator=generator, dtype=torch.int32)
    codebooks = torch.randn(m, size, g, generator=generator, dtype=torch.float64) * 0.2
    hessian = inputs.T @ inputs / 100
    return weight.to(dtype), hessian.to(dtype), codes, codebooks.to(dtype), weight.norm(dim=1).to(dtype)


def literal_loss(weight: Tensor, hessian: Tensor, codes: Tensor, codebooks: Tensor, row_scales: Tensor) -> Tensor:
    """tr((W^-W) H (W^-W)^T) / out through plain indexing."""
    entries = sum(codebooks[m][codes[..., m].long()] for m in range(codebooks.shape[0]))
    difference = entries.flatten(1) * row_scales[:, None] - weight
    return torch.trace(difference @ hessian @ difference.T) / len(weight)


def test_loss_and_gradient_equal_autograd() -> None:
    weight, hessian, codes, codebooks, row_scales = case()
    loss, for_codebooks, for_scales = LayerLoss(weight, hessian, codes, 6).value(codebooks, row_scales)
    codebooks.requires_grad_(True), row_scales.requires_grad_(True)
    expected = literal_loss(weight, hessian, codes, codebooks, row_scales)
    gradients = torch.autograd.grad(expected, (codebooks, row_scales))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(for_codebooks, gradients[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(for_scales, gradients[1], rtol=1e-10, atol=1e-12)


def test_two_epochs_equal_torch_adam_on_the_literal_loss() -> None:
    """The codes change in between and the optimiser's state stays."""
    weight, hessian, codes, codebooks, row_scales = case()
    settings = CodebookSettings(lr=1e-3)
    ours = [codebooks.clone(), row_scales.clone()]
    theirs = [codebooks.clone().requires_grad_(True), row_scales.clone().requires_grad_(True)]
    optimizer = layer_optimizer(*ours, settings)
    oracle = torch.optim.Adam(theirs, lr=1e-3, betas=(0.0, 0.95), amsgrad=True)
    for epoch_codes in (codes, (codes + 1) % 6):
        assert adam_steps(LayerLoss(weight, hessian, epoch_codes, 6), *ours, optimizer, 20, lambda loss: True)
        for _ in range(20):
            oracle.zero_grad()
            literal_loss(weight, hessian, epoch_codes, *theirs).backward()
            oracle.step()
    torch.testing.assert_close(ours[0], theirs[0].detach(), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ours[1], theirs[1].detach(), rtol=1e-9, atol=1e-11)


def test_float32_with_a_float64_trace_agrees_with_float64() -> None:
    precise = case(out=200, groups=32, size=16)
    narrow = [tensor.float() if tensor.is_floating_point() else tensor for tensor in precise]
    exact, *gradients = LayerLoss(*precise[:3], 16).value(*precise[3:])
    loss, *approximations = LayerLoss(*narrow[:3], 16).value(*narrow[3:])
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)
    for approximation, gradient in zip(approximations, gradients, strict=True):
        assert (approximation - gradient).norm() < 2e-6 * gradient.norm()


@pytest.mark.parametrize("solver", ["adam", "cg"])
def test_a_refused_loss_changes_nothing(solver: str) -> None:
    weight, hessian, codes, codebooks, row_scales = case()
    problem, seen = LayerLoss(weight, hessian, codes, 6), []
    before = codebooks.clone(), row_scales.clone()

    def refuse(loss: float) -> bool:
        seen.append(loss)
        return False

    if solver == "adam":
        optimizer = layer_optimizer(codebooks, row_scales, CodebookSettings())
        assert not adam_steps(problem, codebooks, row_scales, optimizer, 5, refuse)
    else:
        assert not cg_steps(problem, codebooks, row_scales, 5, refuse)
    assert torch.equal(codebooks, before[0]) and torch.equal(row_scales, before[1])
    assert seen == [pytest.approx(float(literal_loss(weight, hessian, codes, codebooks, row_scales)), rel=1e-10)]


@pytest.mark.parametrize("steps", [5, 20, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cg_ends_no_higher_than_adam_with_as_many_products(steps: int, dtype: torch.dtype) -> None:
    ends = []
    for solver in ("adam", "cg"):
        weight, hessian, codes, codebooks, row_scales = case(dtype)
        problem = LayerLoss(weight, hessian, codes, 6)
        if solver == "adam":
            optimizer = layer_optimizer(codebooks, row_scales, CodebookSettings(lr=1e-2))
            adam_steps(problem, codebooks, row_scales, optimizer, steps, lambda loss: True)
        else:
            cg_steps(problem, codebooks, row_scales, steps, lambda loss: True)
        ends.append(problem.value(codebooks, row_scales)[0])
    assert ends[1] <= ends[0]


def test_cg_reaches_a_stationary_point() -> None:
    weight, hessian, codes, codebooks, row_scales = case()
    problem = LayerLoss(weight, hessian, codes, 6)
    start = problem.value(codebooks, row_scales)
    cg_steps(problem, codebooks, row_scales, 2000, lambda loss: True)
    end = problem.value(codebooks, row_scales)
    assert end[0] < start[0]
    assert end[1].norm() < 1e-4 * start[1].norm() and end[2].norm() < 1e-4 * start[2].norm()


def test_cg_survives_zero_rows_and_blind_columns() -> None:
    weight, hessian, codes, codebooks, row_scales = case(torch.float32)
    weight[3], row_scales[3] = 0, 1e-9
    hessian[:4], hessian[:, :4] = 0, 0
    cg_steps(LayerLoss(weight, hessian, codes, 6), codebooks, row_scales, 30, lambda loss: True)
    assert torch.isfinite(codebooks).all() and torch.isfinite(row_scales).all()
