from __future__ import annotations

import pytest
import torch

from oaem.pv.lamb import Lamb, lamb_step, lamb_step_reference


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("shape", [(7,), (5, 12), (2, 16, 4)])
def test_equals_the_definition_over_many_steps(beta1: float, shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(3)
    lamb = Lamb(lr=0.02, beta1=beta1, beta2=0.95, eps=1e-6)
    parameter = torch.randn(shape, generator=random, dtype=torch.float64)
    expected, first, second = parameter.clone(), torch.zeros_like(parameter), torch.zeros_like(parameter)
    moments = lamb.moments(parameter)
    for step in range(1, 12):
        gradient = torch.randn(shape, generator=random, dtype=torch.float64) * 10.0 ** (step % 5 - 3)
        lamb_step(parameter, gradient, moments, step, lamb)
        expected, first, second = lamb_step_reference(expected, gradient, first, second, step, lamb)
        torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moments["second"], second, rtol=1e-12, atol=0)
        if beta1:
            torch.testing.assert_close(moments["first"], first, rtol=1e-12, atol=1e-15)


def test_first_moment_is_stored_only_if_it_is_one() -> None:
    parameter = torch.ones(3)
    assert set(Lamb(0.1, 0.0, 0.95, 1e-6).moments(parameter)) == {"second"}
    assert set(Lamb(0.1, 0.9, 0.95, 1e-6).moments(parameter)) == {"first", "second"}


def test_a_step_moves_by_the_rate_times_the_norm() -> None:
    """By hand: the trust ratio makes the update as long as the parameter; at step 1 debias is sqrt(1 - beta2)."""
    parameter, gradient = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0])
    lamb = Lamb(lr=0.1, beta1=0.0, beta2=0.75, eps=1e-6)
    before = parameter.clone()
    lamb_step(parameter, gradient, lamb.moments(parameter), 1, lamb)
    length = 5.0 * 0.1 * 0.5  # ||p|| lr sqrt(1 - 0.75)
    torch.testing.assert_close(before - parameter, torch.full((2,), length / 2**0.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_ratio_is_one_without_a_parameter_or_without_a_gradient(beta1: float) -> None:
    lamb = Lamb(lr=0.1, beta1=beta1, beta2=0.75, eps=1e-6)
    zero = torch.zeros(4)
    lamb_step(zero, torch.ones(4), lamb.moments(zero), 1, lamb)
    # update = (1 - b1) / sqrt(1 - b2), debias = sqrt(1 - b2) / (1 - b1): Adam's own step of length lr an entry
    torch.testing.assert_close(zero, torch.full((4,), -0.1), rtol=1e-5, atol=0)
    still = torch.ones(4)
    lamb_step(still, torch.zeros(4), lamb.moments(still), 1, lamb)
    assert torch.equal(still, torch.ones(4))
