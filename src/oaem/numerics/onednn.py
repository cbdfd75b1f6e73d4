"""The float32 matrix product of the CPU through oneDNN, where that is the library that makes most of the processor.

PyTorch hands products to MKL. On an Intel Xeon with AVX-512 that gives 117 to 148 GFLOP/s a thread, and oneDNN, also
part of PyTorch, 107 to 117 in the same precision. On an AMD Zen 5 MKL leaves half the width of the vectors unused: 110,
and oneDNN 240; on a Zen 4, whose vectors are as wide as MKL's, 100 and 108. The operator that leads to oneDNN is a
private one of PyTorch, so it serves only where it is the faster one, is there, and gives the right numbers.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from oaem.runtime.processor import processor
from oaem.runtime.provenance import FACTS_OF_A_CPU

log = logging.getLogger(__name__)


@cache
def product_library() -> str:
    """What makes this process's float32 products: "onednn" on an AMD processor with AVX-512, else "torch".

    By what the processor is, never by a measurement: a machine gives the same bits every time.
    """
    if processor().vendor != "AuthenticAMD" or "avx512f" not in processor().flags:
        return "torch"
    fault = _fault_of_onednn()
    if fault:
        log.debug("float32 products go through PyTorch's own: oneDNN's operator %s", fault)
    return "torch" if fault else "onednn"


FACTS_OF_A_CPU["products"] = product_library


def product_onednn(left: Tensor, right: Tensor) -> Tensor:
    """`left` [n, k] @ `right` [k, m], float32 and not empty, without gradients."""
    # For views with gaps oneDNN falls back to plain loops, thousands of times slower than a copy.
    result: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(left), _dense(right).t(), None, "none", [], "")
    return result


def _dense(matrix: Tensor) -> Tensor:
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def _fault_of_onednn() -> str | None:
    """Why the operator cannot be used here; None if it multiplies integers that float32 holds exactly without error."""
    left, right = (torch.arange(n * 40).reshape(n, 40).remainder(prime) - 8 for n, prime in ((24, 19), (33, 17)))
    try:
        found = product_onednn(left.float(), right.float().t())
    except (AttributeError, RuntimeError, TypeError) as error:  # not there, not built in, or called in another way
        return f"does not work here: {error}"
    return None if torch.equal(found, (left @ right.t()).float()) else "gives wrong numbers"
