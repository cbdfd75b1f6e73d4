"""A block whose products run in bfloat16 while it is tuned on a CUDA device.

Parameters, their gradients and the residual stream stay float32; what a linear layer, a norm or attention hands to the
next product is bfloat16, as in the model's own forward, and every product sums in float32. Rounding to bfloat16 adds
noise of some 1e-5 of a product's energy, where quantisation takes away percents: docs/performance.md shows that the
tuned block is as good as in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from oaem.quantization.kernels.cuda.attention import fused_attention
from oaem.quantization.kernels.cuda.gated import gated_forward, is_gated
from oaem.quantization.kernels.cuda.layer_loss import dequantize_triton, scale_gradients_triton
from oaem.quantization.kernels.cuda.rms_norm import rms_norm
from oaem.quantization.kernels.cuda.rotary import fused_rotary
from oaem.quantization.kernels.cuda.sorted_sums import SortedCodes
from oaem.quantization.linear import QuantizedLinear


@contextmanager
def mixed_precision(block: nn.Module) -> Iterator[None]:
    """Let the linears, RMS norms, gates and attention of `block`, on a CUDA device, work as described above.

    The codes of its quantised linears must not change meanwhile.
    """
    with ExitStack() as stack:
        stack.enter_context(fused_attention(block))
        stack.enter_context(fused_rotary(block))
        for module in block.modules():
            forward = _forward_of(module)
            if forward is not None:
                # An instance attribute hides the class's method.
                module.__dict__["forward"] = forward
                stack.callback(module.__dict__.pop, "forward")
        yield


def _forward_of(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if isinstance(module, QuantizedLinear):
        return partial(_quantized_linear, module, SortedCodes(module.codes, module.codebooks.shape[1]))
    if type(module) is nn.Linear:
        return partial(_linear, module)
    # What transformers calls so, with an epsilon of this name, is weight * inputs / root mean square in every family;
    # Gemma's, which multiplies by 1 + weight, calls it `eps`, and goes its own way in float32.
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        return partial(_rms_norm, module)
    return partial(gated_forward, module) if is_gated(module) else None


def _linear(module: nn.Linear, inputs: Tensor) -> Tensor:
    product: Tensor = _Product.apply(inputs.bfloat16(), module.weight)
    return product if module.bias is None else product + module.bias


def _quantized_linear(module: QuantizedLinear, order: Any, inputs: Tensor) -> Tensor:
    product: Tensor = _QuantizedProduct.apply(
        inputs.bfloat16(), module.codes, module.codebooks, module.row_scales, order
    )
    return product if module.bias is None else product + module.bias


def _rms_norm(module: Any, inputs: Tensor) -> Tensor:
    """The families' RMS norm; norms of queries and keys get bfloat16."""
    return rms_norm(inputs, module.weight, module.variance_epsilon)


class _Product(torch.autograd.Function):
    """inputs bfloat16 [..., in] by weight float32 [out, in] -> bfloat16 [..., out]; float32 gradient of the weight."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        half = weight.bfloat16()
        ctx.save_for_backward(inputs, half)
        return inputs @ half.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        inputs, half = ctx.saved_tensors
        return gradient @ half, weight_gradient(gradient, inputs)


class _QuantizedProduct(torch.autograd.Function):
    """The same by an additive weight, whose gradients are those of its codebooks and row scales."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, codes: Tensor, codebooks: Tensor, row_scales: Tensor, order: Any) -> Tensor:
        half = dequantize_triton(codes, codebooks, row_scales, torch.bfloat16)
        ctx.save_for_backward(inputs, half, codes, codebooks, row_scales)
        ctx.order = order
        return inputs @ half.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        inputs, half, codes, codebooks, row_scales = ctx.saved_tensors
        dense = weight_gradient(gradient, inputs)
        slopes = scale_gradients_triton(dense, codes, codebooks, row_scales)
        return gradient @ half, None, ctx.order.sums(dense, row_scales), slopes, None


def weight_gradient(gradient: Tensor, inputs: Tensor) -> Tensor:
    """gradient [..., out] and inputs [..., in] in bfloat16 -> their product over all tokens, float32 [out, in]."""
    left, right = gradient.flatten(0, -2).T, inputs.flatten(0, -2)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()  # torch has no such product for the CPU, where tests go through this code.
