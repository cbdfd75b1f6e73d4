"""The model families that can be quantised: where their blocks are, in which order their linears go (section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from oaem.errors import UserError

ENTRY_POINTS = "oaem.families"
_GROUPS = (
    ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"),
    ("self_attn.o_proj",),
    ("mlp.up_proj", "mlp.gate_proj"),
    ("mlp.down_proj",),
)
# Where one linear gives queries, keys and values, and one both halves of the MLP.
_FUSED_GROUPS = (("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",))


@dataclass(frozen=True)
class Family:
    """One architecture as transformers builds it.

    `name` is the `model_type` of its config.json. `blocks` is the path from the causal LM to its list of transformer
    blocks. `sequential_groups` are the linears of one block, as paths from the block: a group's linears share one
    input and are quantised together, groups follow each other in the order of the forward pass. The logits of a family
    must be its output embedding applied to its final hidden states, and its blocks must take them as first argument.
    `leans_on_bos`: the model goes astray on text that does not begin with its BOS token, so every window does.
    """

    name: str
    blocks: str = "model.layers"
    sequential_groups: tuple[tuple[str, ...], ...] = _GROUPS
    leans_on_bos: bool = False

    def block_prefix(self, index: int) -> str:
        """What the tensor names of block `index` begin with, for example `model.layers.3.`."""
        return f"{self.blocks}.{index}."


# The one place where a family is added. Norms, biases, masks, rotary embeddings and scales of embeddings or attention
# are the model's own modules and arguments, so they need no mention here.
BUILT_IN = (
    Family("llama"),
    Family("qwen2"),
    Family("mistral"),
    Family("qwen3"),
    Family("gemma3_text", leans_on_bos=True),
    Family("phi3", sequential_groups=_FUSED_GROUPS),
    Family("olmo2"),
)


@cache
def families() -> dict[str, Family]:
    """Every known family by name: the built-in ones, then those of installed packages."""
    known = {family.name: family for family in BUILT_IN}
    for entry in entry_points(group=ENTRY_POINTS):
        family = entry.load()
        if not isinstance(family, Family):
            raise UserError(
                f"entry point {entry.name!r} of the group {ENTRY_POINTS}: expected an oaem.models.families.Family, "
                f"found {type(family).__name__}; mend or uninstall the package that declares it."
            )
        known[family.name] = family
    return known


def family_of(config: Any) -> Family:
    """The family of a transformers config, or of its `model_type`; UserError if it is not a known one."""
    name = config if isinstance(config, str) else getattr(config, "model_type", None)
    known = families()
    if name not in known:
        raise UserError(
            f"model_type {name!r} is not a known model family ({', '.join(sorted(known))}). To add one, declare a "
            f"Family of oaem.models.families as an entry point of the group {ENTRY_POINTS!r} in a package of yours."
        )
    return known[name]


def linear_names(family: Family) -> tuple[str, ...]:
    """The linears of one block in the order in which they are quantised."""
    return tuple(name for group in family.sequential_groups for name in group)
