"""The student: the quantised model with every continuous part trainable and its codes within reach."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from oaem.calibration.artefacts import QuantizedState
from oaem.errors import UserError
from oaem.models.attention import use_fast_attention
from oaem.models.load import load_model
from oaem.pv.blocks import blocks_of, prepare_blocks, prepare_embeddings
from oaem.pv.products import summing_linear
from oaem.quantization.weight import AdditiveWeight, dequantize


class StudentLinear(nn.Module):
    """A linear layer whose weight is dequantised once an optimiser step, not once a sequence.

    `weight` [out, in] is a leaf in the dtype of the matrix products. Its gradient is summed in float32 over the
    sequences of a batch into `weight_gradient`. From there it serves the straight-through buffer as it is, and
    codebooks and scales through `weight.weight_gradients`, which is exact because both are linear in it.
    """

    codes: Tensor
    weight_gradient: Tensor

    def __init__(self, weight: AdditiveWeight, bias: Tensor | None, compute_dtype: torch.dtype, device: str) -> None:
        super().__init__()
        narrow = torch.uint8 if weight.codebooks.shape[1] <= 256 else torch.int32
        codes = weight.codes.to(device=device, dtype=narrow, copy=True).contiguous()
        self.register_buffer("codes", codes)
        self.codebooks = nn.Parameter(_float32(weight.codebooks, device))
        self.row_scales = nn.Parameter(_float32(weight.row_scales, device))
        self.bias = None if bias is None else nn.Parameter(_float32(bias, device))
        dense = self.dequantize()
        self.weight = dense.to(compute_dtype, copy=True).requires_grad_()
        self.weight.register_post_accumulate_grad_hook(self._collect)
        self.register_buffer("weight_gradient", torch.zeros_like(dense), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if not _sums_gradients(inputs):
            return functional.linear(inputs, self.weight, self.bias)
        narrow = inputs.flatten(0, -2).to(self.weight.dtype)
        outputs = summing_linear(narrow, self.weight.detach(), self.weight_gradient).unflatten(0, inputs.shape[:-1])
        return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)

    @torch.no_grad()
    def dequantize(self) -> Tensor:
        """The weight [out, in] that codes, codebooks and scales make now, in float32."""
        return dequantize(self.codes, self.codebooks, self.row_scales)

    @torch.no_grad()
    def refresh(self, dense: Tensor) -> None:
        """Compute with `dense` [out, in] from now on."""
        self.weight.copy_(dense)

    def _collect(self, weight: Tensor) -> None:
        if weight.grad is None:  # it is in the sum already
            return
        self.weight_gradient += weight.grad
        weight.grad = None


class Student:
    """The trainable model; masters are float32, matrix products run in `compute_dtype` (bfloat16 by autocast).

    linears: the quantised linears by full name. parameters: every unquantised parameter by full name, the output head
    apart from the embeddings even if the model ties them.
    """

    def __init__(
        self,
        model_folder: Path,
        state: QuantizedState,
        dtype: torch.dtype,
        compute_dtype: torch.dtype,
        device: str,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Read the model from `model_folder` in its storage `dtype` and put `state` in place.

        UserError if `state` names what the model lacks, or its shapes differ.
        """
        self.dtype, self.compute_dtype, self.device = dtype, compute_dtype, device
        self._stored = {name: weight.codebooks.dtype for name, weight in state.linears.items()}
        self.model: Any = load_model(model_folder, dtype, "cpu")
        self._untie()
        self._check(model_folder, state)
        self.linears = {name: self._replace(name, weight) for name, weight in state.linears.items()}
        self.model.to(device)
        use_fast_attention(self.model)
        prepare_embeddings(self.model)
        own = {f"{name}.{part}" for name in self.linears for part in ("codebooks", "row_scales")}
        self.parameters: dict[str, nn.Parameter] = {}
        for name, parameter in self.model.named_parameters():
            if name not in own:
                parameter.data = parameter.data.float()
                parameter.requires_grad_()
                self.parameters[name] = parameter
        with torch.no_grad():
            for name, tensor in state.tensors.items():
                self.parameters[name].copy_(tensor)
        prepare_blocks(self.model, gradient_checkpointing)
        self._checkpointed = [block for block in blocks_of(self.model) if block.gradient_checkpointing]

    @property
    def head(self) -> Tensor:
        """Weight of the output head [vocabulary, hidden]."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens [sequences, window] -> what the output head reads [sequences * window, hidden]."""
        # Checkpointing needs blocks that train, and a measure may have put the model in eval mode since. The blocks
        # alone are told, not what is in them, so no dropout wakes up.
        for block in self._checkpointed:
            block.training = True
        with self.autocast():
            body = self.model.get_decoder()
            output: Tensor = body(input_ids=tokens, use_cache=False).last_hidden_state
        return output.flatten(0, 1)

    def autocast(self) -> AbstractContextManager[None]:
        """Where matrix products run in the compute dtype."""
        kind = torch.device(self.device).type
        narrow = self.compute_dtype != torch.float32
        return torch.autocast(kind, self.compute_dtype if narrow else torch.bfloat16, enabled=narrow)

    def clear_gradients(self) -> None:
        """Forget the gradients of the last batch."""
        for linear in self.linears.values():
            linear.weight_gradient.zero_()
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> QuantizedState:
        """A copy on the CPU in the dtypes of storage: what is counted, published and evaluated."""
        linears = {}
        for name, linear in self.linears.items():
            stored = self._stored[name]
            codebooks, scales = linear.codebooks.detach(), linear.row_scales.detach()
            linears[name] = AdditiveWeight(
                linear.codes.to("cpu", copy=True), _copy(codebooks, stored), _copy(scales, stored)
            )
        tensors = {name: _copy(parameter.detach(), self.dtype) for name, parameter in self.parameters.items()}
        return QuantizedState(linears, tensors)

    def _untie(self) -> None:
        head = self.model.get_output_embeddings()
        if head.weight is self.model.get_input_embeddings().weight:
            head.weight = nn.Parameter(head.weight.detach().clone())
        self.model.config.tie_word_embeddings = False
        self.model.config.use_cache = False

    def _check(self, model_folder: Path, state: QuantizedState) -> None:
        shapes = {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}
        given = {name: tuple(tensor.shape) for name, tensor in state.tensors.items()}
        for name, weight in state.linears.items():
            given[f"{name}.weight"] = (weight.codes.shape[0], weight.codes.shape[1] * weight.codebooks.shape[2])
        for name, shape in given.items():
            if shapes.get(name) != shape:
                raise UserError(
                    f"{model_folder}: the quantised state has {name} of shape {shape}, the model "
                    f"{shapes.get(name, 'no such tensor')}. It was made from another model; quantise this one again."
                )

    def _replace(self, name: str, weight: AdditiveWeight) -> StudentLinear:
        parent, _, child = name.rpartition(".")
        bias = self.model.get_submodule(name).bias
        bias = None if bias is None else bias.detach()
        linear = StudentLinear(weight, bias, self.compute_dtype, self.device)
        setattr(self.model.get_submodule(parent), child, linear)
        return linear


def _sums_gradients(inputs: Tensor) -> bool:
    """Whether `summing_linear` can serve. Asked inside of compiled blocks, which see through no choice of a path."""
    return inputs.is_cuda and torch.is_grad_enabled()


def _float32(tensor: Tensor, device: str) -> Tensor:
    return tensor.detach().to(device=device, dtype=torch.float32, copy=True)


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(device="cpu", dtype=dtype, copy=True)
