"""How the parts of a transformers model are made ready for PV-tuning."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from oaem.numerics.fast_paths import fast_path


@fast_path("cuda", "oaem.pv.kernels.cuda.compiled:prepare_blocks")
def prepare_blocks(model: nn.Module, checkpointing: bool) -> None:
    """Run the blocks of a student or a teacher as they are; with `checkpointing` recomputed in the backward pass.

    The public switch changed its name between the transformers that this project runs on; what it sets did not.
    """
    if checkpointing:
        for block in blocks_of(model):
            block.gradient_checkpointing = True
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


@fast_path("cuda", "oaem.pv.kernels.cuda.embeddings:prepare_embeddings")
def prepare_embeddings(model: Any) -> None:
    """Leave the gradient of the embeddings to autograd."""


def blocks_of(model: nn.Module) -> list[Any]:
    """The blocks that can be recomputed in the backward pass."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
