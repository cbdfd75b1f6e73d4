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
from oaem.quantization.kernels.cuda.gated import gate_activation, gated_forward
from oaem.quantization.kernels.cuda.quantized_product import SharedInput, weight_gradient
from oaem.quantization.kernels.cuda.rms_norm import norm_numbers, rms_norm
from oaem.quantization.kernels.cuda.rotary import fused_rotary
from oaem.quantization.linear import QuantizedLinear

Forward = Callable[[Tensor], Tensor]
# Linears of one module that read the same input, by the names that transformers gives them in most families.
SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@contextmanager
def mixed_precision(block: nn.Module) -> Iterator[None]:
    """Let the linears, RMS norms, gates and attention of `block`, on a CUDA device, work as described above.

    The codes of its quantised linears must not change meanwhile.
    """
    with ExitStack() as stack:
        stack.enter_context(fused_attention(block))
        stack.enter_context(fused_rotary(block))
        shared = [SharedInput(linears) for linears in quantized_linears(block)]
        for each in shared:
            stack.enter_context(each.stacked())
        for module, forward in _forwards(block, shared).items():
            # An instance attribute hides the class's method.
            module.__dict__["forward"] = forward
            stack.callback(module.__dict__.pop, "forward")
        yield


def _forwards(block: nn.Module, shared: list[SharedInput]) -> dict[nn.Module, Forward]:
    """What takes the place of the forward of modules of `block`."""
    found: dict[nn.Module, Forward] = {}
    for each in shared:
        found |= {linear: partial(each.forward, index) for index, linear in enumerate(each.linears)}
    linears = [part for part in block.modules() if isinstance(part, nn.Linear | QuantizedLinear)]
    biased = any(linear.bias is not None for linear in linears)
    for module in block.modules():
        forward = _forward_of(module, biased)
        if forward is not None:
            found[module] = forward
    return found


def quantized_linears(block: nn.Module) -> list[list[QuantizedLinear]]:
    """All quantised linears of `block`, those together that share an input by their names and have one geometry."""
    found: list[list[QuantizedLinear]] = []
    taken: set[nn.Module] = set()
    for parent in block.modules():
        for names in SHARING:
            linears = [getattr(parent, name, None) for name in names]
            ours = [linear for linear in linears if isinstance(linear, QuantizedLinear)]
            alike = len({(linear.codebooks.shape, linear.in_features) for linear in ours}) == 1
            if len(ours) == len(names) and alike:
                found.append(ours)
                taken |= set(ours)
    alone = [part for part in block.modules() if isinstance(part, QuantizedLinear) and part not in taken]
    return found + [[linear] for linear in alone]


def _forward_of(module: nn.Module, biased: bool) -> Forward | None:
    """What takes the place of `module`'s forward in a block where a linear is `biased`; None if it stays."""
    if type(module) is nn.Linear:
        return partial(_linear, module)
    norm = norm_numbers(module)
    # Gemma's norms give the dtype that they get. Those of products give bfloat16; those of the residual stream give
    # float32, but to linears, which round it to bfloat16 anyway. Only a product with a bias, which is float32, would be
    # rounded once more on its way to the residual stream: there such norms stay as they are.
    if norm is not None:
        epsilon, offset = norm
        return None if offset and biased else partial(_rms_norm, module, epsilon, offset)
    activation = gate_activation(module)
    return None if activation is None else partial(gated_forward, module, activation)


def _linear(module: nn.Linear, inputs: Tensor) -> Tensor:
    product: Tensor = _Product.apply(inputs.bfloat16(), module.weight)
    return product if module.bias is None else product + module.bias


def _rms_norm(module: Any, epsilon: float, offset: int, inputs: Tensor) -> Tensor:
    """The families' RMS norm; norms of queries and keys, and Gemma's and OLMo's of what products gave, get bfloat16."""
    return rms_norm(inputs, module.weight, epsilon, offset)


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
