"""Linear layers of the student on a CUDA device, whose weight gradients are summed where the product is made.

autograd would round each sequence's gradient to the dtype of the products, write it out and add it in another pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@torch.library.custom_op("oaem::add_product", mutates_args={"total"})
def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total [a, b] += left^T right, for left [n, a] and right [n, b] of one dtype; `total` is float32."""
    if left.dtype == torch.float32 or not left.is_cuda:  # torch has the other product for CUDA devices alone
        total += left.T @ right
    else:
        torch.addmm(total, left.T, right, out_dtype=torch.float32, out=total)


@torch.library.custom_op("oaem::summing_linear", mutates_args=())
def summing_linear(inputs: Tensor, weight: Tensor, total: Tensor) -> Tensor:
    """inputs [n, in] times weight^T [in, out]; the backward pass adds the weight's gradient to `total` [out, in]."""
    return functional.linear(inputs, weight)


@summing_linear.register_fake
def _(inputs: Tensor, weight: Tensor, total: Tensor) -> Tensor:
    return inputs.new_empty(inputs.shape[0], weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    inputs, weight, total = ctx.saved_tensors
    add_product(total, gradient, inputs)
    return gradient @ weight, None, None


summing_linear.register_autograd(_backward, setup_context=_keep)
