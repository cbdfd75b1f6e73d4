"""A causal LM without weights, whose own forward can still be run as far as the entrance of any block."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from oaem.models.families import Family


class _NoWeights(TorchFunctionMode):
    """Makes uninitialised tensors, which is what modules take their weights from, on the meta device.

    Everything else is made as always: rotary frequencies or the scale of an embedding are computed, and in no file.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build_skeleton(config: Any, dtype: torch.dtype) -> Any:
    """The model of `config` in eval mode, every parameter on the meta device, every buffer computed on the CPU."""
    with _NoWeights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:  # made of ones or zeros, as the weights of norms are
                setattr(module, name, nn.Parameter(parameter.to("meta")))
    return model


def place_buffers(module: nn.Module, device: torch.device | str) -> None:
    """Move the buffers of a skeleton, or of a part of it, to `device`, in the dtype that they were computed in."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))


def block_list(model: nn.Module, family: Family) -> nn.ModuleList:
    """The transformer blocks of `model`."""
    blocks = model.get_submodule(family.blocks)
    if not isinstance(blocks, nn.ModuleList):
        raise TypeError(f"family {family.name}: {family.blocks} is a {type(blocks).__name__}, not a list of blocks")
    return blocks


class _Entered(Exception):  # noqa: N818 - control flow, not a fault
    """Ends a forward pass at the entrance of a block."""


class _Passage(nn.Module):
    """Stands in for a block: hands the hidden states on, or stops the forward and keeps what it was called with."""

    def __init__(self, block: nn.Module, stop: bool) -> None:
        super().__init__()
        # In a tuple, so that the block is no submodule and its weights belong to nobody here.
        self._block = (block,)
        self._stop = stop
        self.arguments: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        # Some models ask a block for its kind (attention_type) before they call it.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self._stop:
            return args[0] if args else kwargs["hidden_states"]
        bound = inspect.signature(self._block[0].forward).bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            self.arguments |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        raise _Entered


@torch.no_grad()
def enter_block(model: Any, family: Family, index: int, inputs: dict[str, Any]) -> dict[str, Any]:
    """Run the forward of a skeleton on `inputs` up to block `index`; the arguments that block would be called with.

    The blocks are out of the model for the time of the call, so what lies before them must have its weights.
    """
    path, _, name = family.blocks.rpartition(".")
    owner, blocks = model.get_submodule(path), block_list(model, family)
    passages = [_Passage(block, stop=at == index) for at, block in enumerate(blocks)]
    setattr(owner, name, nn.ModuleList(passages))
    try:
        model.get_decoder()(**inputs, use_cache=False)
    except _Entered:
        return passages[index].arguments
    finally:
        setattr(owner, name, blocks)
    raise RuntimeError(f"family {family.name}: the forward pass never reached block {index}")
