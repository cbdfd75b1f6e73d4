"""Tuning of a block's continuous parameters to its outputs before the last quantisation (section 4, setup)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from oaem.config.settings import BlockTuningSettings
from oaem.errors import UserError
from oaem.numerics.fast_paths import fast_path
from oaem.runtime.seeds import generator

# (inputs, target) -> loss, a tensor without gradient.
Step = Callable[[Tensor, Tensor], Tensor]


def tune_block(
    block: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    arguments: dict[str, Any],
    settings: BlockTuningSettings,
    seed: int,
) -> list[float]:
    """Fit every floating-point parameter of `block` in place; returns the mean squared error of each epoch.

    inputs, targets: [n, tokens, hidden] on any device. The block is called as block(hidden [1, tokens, hidden],
    **arguments) and gives a tensor or a tuple that starts with it. It works in float32 and is given back in its own
    dtypes. On a CUDA device its products run in bfloat16 (see `precision_of`). UserError if the loss stops being
    finite.
    """
    if settings.epochs == 0:
        return []
    device = next(block.parameters()).device
    with _in_float32(block) as parameters, precision_of(block):
        step = launcher_of(block, _stepper(block, parameters, _floats(arguments), settings))
        losses = []
        for epoch in range(settings.epochs):
            total = torch.zeros((), dtype=torch.float64, device=device)
            for index in torch.randperm(len(inputs), generator=generator(seed, "tune", epoch)).tolist():
                total += step(*(part[index : index + 1].to(device) for part in (inputs, targets)))
            losses.append(float(total) / len(inputs))
            if not math.isfinite(losses[-1]):
                raise UserError(
                    f"block tuning diverged in epoch {epoch + 1}: its error is {losses[-1]}. Lower block_tuning.lr, or "
                    "turn it off with block_tuning.epochs: 0."
                )
    return losses


@fast_path("cuda", "oaem.quantization.kernels.cuda.mixed_precision:mixed_precision")
def precision_of(block: nn.Module) -> AbstractContextManager[None]:
    """The context in which `block` is tuned: as it is, in float32 throughout."""
    return nullcontext()


@fast_path("cuda", "oaem.quantization.kernels.cuda.recorded:recorded")
def launcher_of(block: nn.Module, step: Step) -> Step:
    """How a step on `block` is launched: operation by operation."""
    return step


def _stepper(
    block: nn.Module, parameters: list[nn.Parameter], arguments: dict[str, Any], settings: BlockTuningSettings
) -> Step:
    """One Adam step on one sequence [1, tokens, hidden] and its target: the mean squared error before it."""
    on_gpu = parameters[0].is_cuda
    betas = (settings.beta1, settings.beta2)
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, betas=betas, fused=on_gpu, capturable=on_gpu)

    def step(inputs: Tensor, target: Tensor) -> Tensor:
        output = block(inputs.float(), **arguments)
        optimizer.zero_grad(set_to_none=True)
        loss = backward_squared_error(output[0] if isinstance(output, tuple) else output, target)
        optimizer.step()
        return loss

    return step


@fast_path("cuda", "oaem.quantization.kernels.cuda.squared_error:backward_squared_error_triton")
def backward_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Add the gradients of the mean squared error to everything that `output` comes from; returns the error, a scalar.

    output: float32 with a gradient. target: floating point of the same shape.
    """
    loss = functional.mse_loss(output, target.float())
    loss.backward()
    return loss.detach()


@contextmanager
def _in_float32(block: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The block's parameters, learning and in float32; everything is put back at the end."""
    tensors = [tensor for tensor in (*block.parameters(), *block.buffers()) if tensor.is_floating_point()]
    before = [(tensor, tensor.dtype, tensor.requires_grad) for tensor in tensors]
    parameters = [parameter for parameter in block.parameters() if parameter.is_floating_point()]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield parameters
    finally:
        for parameter in parameters:
            parameter.grad = None
        for tensor, dtype, learns in before:
            tensor.data = tensor.data.to(dtype)
            tensor.requires_grad_(learns)


def _floats(value: Any) -> Any:
    """`value` with every floating-point tensor inside as float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _floats(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_floats(part) for part in value)
    return value
