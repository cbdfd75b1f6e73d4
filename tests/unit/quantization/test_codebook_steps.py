from __future__ import annotations

import pytest
import torch

from oaem.config.settings import CodebookSettings
from oaem.quantization.codebook_steps import adam_steps, cg_steps, layer_optimizer
from oaem.quantization.layer_loss import layer_loss
from tests.unit.quantization.toy_layers import defined_loss, with_fixed_codes


def test_two_epochs_equal_torch_adam_on_the_literal_loss() -> None:
    """The codes change in between and the optimiser's state stays."""
    weight, hessian, codes, codebooks, row_scales = with_fixed_codes()
    settings = CodebookSettings(lr=1e-3)
    ours = [codebooks.clone(), row_scales.clone()]
    theirs = [codebooks.clone().requires_grad_(True), row_scales.clone().requires_grad_(True)]
    optimizer = layer_optimizer(*ours, settings)
    oracle = torch.optim.Adam(theirs, lr=1e-3, betas=(0.0, 0.95), amsgrad=True)
    for epoch_codes in (codes, (codes + 1) % 6):
        assert adam_steps(layer_loss(weight, hessian, epoch_codes, 6), *ours, optimizer, 20, lambda loss: True)
        for _ in range(20):
            oracle.zero_grad()
            defined_loss(weight, hessian, epoch_codes, *theirs).backward()
            oracle.step()
    torch.testing.assert_close(ours[0], theirs[0].detach(), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ours[1], theirs[1].detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solver", ["adam", "cg"])
def test_a_refused_loss_changes_nothing(solver: str) -> None:
    weight, hessian, codes, codebooks, row_scales = with_fixed_codes()
    problem, seen = layer_loss(weight, hessian, codes, 6), []
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
    assert seen == [pytest.approx(float(defined_loss(weight, hessian, codes, codebooks, row_scales)), rel=1e-10)]


@pytest.mark.parametrize("steps", [5, 20, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cg_ends_no_higher_than_adam_with_as_many_products(steps: int, dtype: torch.dtype) -> None:
    ends = []
    for solver in ("adam", "cg"):
        weight, hessian, codes, codebooks, row_scales = with_fixed_codes(dtype)
        problem = layer_loss(weight, hessian, codes, 6)
        if solver == "adam":
            optimizer = layer_optimizer(codebooks, row_scales, CodebookSettings(lr=1e-2))
            adam_steps(problem, codebooks, row_scales, optimizer, steps, lambda loss: True)
        else:
            cg_steps(problem, codebooks, row_scales, steps, lambda loss: True)
        ends.append(problem.value(codebooks, row_scales)[0])
    assert ends[1] <= ends[0]


def test_cg_reaches_a_stationary_point() -> None:
    weight, hessian, codes, codebooks, row_scales = with_fixed_codes()
    problem = layer_loss(weight, hessian, codes, 6)
    start = problem.value(codebooks, row_scales)
    cg_steps(problem, codebooks, row_scales, 2000, lambda loss: True)
    end = problem.value(codebooks, row_scales)
    assert end[0] < start[0]
    assert end[1].norm() < 1e-4 * start[1].norm() and end[2].norm() < 1e-4 * start[2].norm()


def test_cg_survives_zero_rows_and_blind_columns() -> None:
    weight, hessian, codes, codebooks, row_scales = with_fixed_codes(torch.float32)
    weight[3], row_scales[3] = 0, 1e-9
    hessian[:4], hessian[:, :4] = 0, 0
    cg_steps(layer_loss(weight, hessian, codes, 6), codebooks, row_scales, 30, lambda loss: True)
    assert torch.isfinite(codebooks).all() and torch.isfinite(row_scales).all()
