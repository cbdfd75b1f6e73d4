"""The teacher: the unquantised model, of which the loss needs the head and what the head reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from oaem.models.attention import use_fast_attention
from oaem.models.load import load_model
from oaem.pv.blocks import prepare_blocks
from oaem.pv.team import ALONE, Team

# memory, disk: hidden states are computed once and kept there, and the teacher's blocks are let go. live: the teacher
# stays on the device and computes them every time. The values are the same: one sequence a forward pass in every case.
# Several ranks fill one file on the disk together; memory is one process's own.
TeacherPlace = Literal["live", "memory", "disk"]


class Teacher:
    """Hidden states of the original model for each sequence, and its output head."""

    def __init__(
        self,
        model_folder: Path,
        tokens: Tensor,
        compute_dtype: torch.dtype,
        device: str,
        place: TeacherPlace,
        cache_file: Path,
        progress: Callable[[], None] = lambda: None,
        team: Team = ALONE,
    ) -> None:
        """tokens: [sequences, window] integer. `cache_file` is written only if `place` is disk."""
        self.tokens, self.device, self.cache_file = tokens.to(device), device, cache_file
        model = load_model(model_folder, compute_dtype, device)
        use_fast_attention(model)
        prepare_blocks(model.requires_grad_(False), checkpointing=False)
        self._body: Any = model.get_decoder()
        self.head: Tensor = model.get_output_embeddings().weight.detach()
        self._cache: Tensor | None = None
        if place != "live":
            self._fill(place, self.head.shape[1], compute_dtype, progress, team)

    @torch.no_grad()
    def hidden(self, index: int) -> Tensor:
        """What the teacher's head reads for sequence `index`: [window, hidden] in the compute dtype."""
        if self._cache is not None:
            return self._cache[index].to(self.device)
        output: Tensor = self._body(input_ids=self.tokens[index][None], use_cache=False)[0]
        return output[0]

    def close(self) -> None:
        """Let the cache go, from the disk too."""
        self._cache = None
        self.cache_file.unlink(missing_ok=True)

    def _fill(
        self, place: TeacherPlace, width: int, dtype: torch.dtype, progress: Callable[[], None], team: Team
    ) -> None:
        shape = (*self.tokens.shape, width)
        if place == "disk":
            if team.leads:
                self.cache_file.parent.mkdir(parents=True, exist_ok=True)
                self.cache_file.unlink(missing_ok=True)
                self.cache_file.touch()
            team.wait()
            size = shape[0] * shape[1] * shape[2]
            cache = torch.from_file(str(self.cache_file), shared=True, size=size, dtype=dtype).view(shape)
        else:
            cache = torch.empty(shape, dtype=dtype)
        for index in range(team.rank, shape[0], team.size):
            cache[index] = self.hidden(index)
            progress()
        team.wait()
        self._cache, self._body = cache, None
