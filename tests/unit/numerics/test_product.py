from __future__ import annotations

import pytest
import torch

from oaem.numerics.product import matrix_product


def views(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same numbers in other layouts of memory."""
    wide = torch.zeros(matrix.shape[0], matrix.shape[1] + 3)
    wide[:, 1:-2] = matrix
    return {"rows": matrix, "columns": matrix.T.contiguous().T, "gaps": wide[:, 1:-2], "both": wide.T[1:-2].T}


@pytest.mark.parametrize("left", ["rows", "columns", "gaps", "both"])
@pytest.mark.parametrize("right", ["rows", "columns", "gaps", "both"])
def test_equals_the_product_in_float64_whatever_the_layout(left: str, right: str) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(33, 70, generator=generator), torch.randn(70, 19, generator=generator)
    found = matrix_product(views(a)[left], views(b)[right])
    # 70 terms of size 1 in float32: no lower precision may hide in the fast path.
    torch.testing.assert_close(found.double(), a.double() @ b.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n", "k", "m"), [(0, 3, 2), (2, 0, 3), (2, 3, 0), (1, 1, 1)])
def test_small_and_empty(n: int, k: int, m: int) -> None:
    assert torch.equal(matrix_product(torch.ones(n, k), torch.ones(k, m)), torch.full((n, m), float(k)))


def test_float64_stays_float64() -> None:
    a = torch.rand(5, 6, dtype=torch.float64)
    assert torch.equal(matrix_product(a, a.T), a @ a.T)
