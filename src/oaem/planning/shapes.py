"""The sizes of a model's blocks, as far as they are known before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from oaem.config.schema import Config
from oaem.planning import layout


@dataclass(frozen=True)
class Shape:
    """Widths of one block, the vocabulary, and the number of blocks where a config.json says it.

    `queries` and `keys` are heads times their width; the first is the hidden size in most families, but not in Gemma's.
    """

    hidden: int
    mlp: int
    queries: int
    keys: int
    vocabulary: int
    blocks: int | None = None

    def linears(self) -> list[tuple[int, int]]:
        """(out, in) of the seven linears of a block."""
        attention = [(self.queries, self.hidden), (self.keys, self.hidden), (self.keys, self.hidden)]
        mlp = [(self.mlp, self.hidden), (self.mlp, self.hidden), (self.hidden, self.mlp)]
        return [*attention, (self.hidden, self.queries), *mlp]

    def weights(self) -> int:
        """Numbers in these linears."""
        return sum(map(prod, self.linears()))


EMBEDDED = Shape(576, 1536, 576, 192, 49152, 30)
PAPER: Mapping[str, Shape] = {
    "Llama 3B": Shape(3072, 8192, 3072, 1024, 128256),
    "Llama 8B": Shape(4096, 14336, 4096, 1024, 128256),
    "Qwen 3B": Shape(2048, 11008, 2048, 256, 151936),
}
# Beyond the paper; of its blocks one was measured.
LLAMA_70B = Shape(8192, 28672, 8192, 1024, 128256, 80)


def known(config: Config, name: str) -> Shape | None:
    """The shape of a model: the embedded one's, what its config.json says, or what the configuration does; or None."""
    model = config.models[name]
    if model.source == "embedded":
        return EMBEDDED
    folder = Path(str(model.path)) if model.source == "folder" else Path(layout.model_manifest(name)).parent / "hf"
    try:
        return from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None if model.shape is None else from_config(model.shape.model_dump())


def from_config(values: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes; KeyError, TypeError or ValueError if it lacks a size."""
    heads = int(values["num_attention_heads"])
    width = int(values.get("head_dim") or values["hidden_size"] // heads)
    blocks = values.get("num_hidden_layers")
    return Shape(
        hidden=int(values["hidden_size"]),
        mlp=int(values["intermediate_size"]),
        queries=heads * width,
        keys=int(values.get("num_key_value_heads") or heads) * width,
        vocabulary=int(values["vocab_size"]),
        blocks=None if blocks is None else int(blocks),
    )


def planned(config: Config, name: str) -> Shape:
    """The same for a plan, where some shape is better than none: the paper's model, or Llama 3.2 3B."""
    return known(config, name) or PAPER[config.models[name].paper_model or "Llama 3B"]
