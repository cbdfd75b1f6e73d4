"""The processes that tune one model together, a device each, and what they tell one another.

Nothing is added up on its way: what belongs together is gathered and summed in the order of the ranks. So bits depend
on the number of ranks alone, neither on the backend's choice of an algorithm nor on how the devices are linked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

# Numbers of a tensor that travel at once: 64 MB of float32, of which the receiver holds one for each rank.
PIECE = 2**24
# How long a rank waits for the others, which may be measuring or saving. It is for a rank that hangs: of one that died
# torchrun knows at once.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Team:
    """This process's number among `size`, and the device on which it works; alone it tells nobody anything."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this rank does what one alone must do, such as writing a file for all."""
        return self.rank == 0

    @torch.no_grad()
    def sum_to(self, owner: int, tensor: Tensor) -> None:
        """Add up everybody's `tensor`, contiguous and of one shape, in that of `owner`; the others keep theirs."""
        if self.size == 1:
            return
        for piece in tensor.view(-1).split(PIECE):
            parts = [torch.empty_like(piece) for _ in range(self.size)] if self.rank == owner else None
            distributed.gather(piece, parts, dst=owner)
            if parts is not None:
                total = parts[0]
                for part in parts[1:]:
                    total += part
                piece.copy_(total)

    def spread(self, owner: int, tensor: Tensor) -> None:
        """Put the values of `owner` into everybody's `tensor`, contiguous and of one shape."""
        if self.size > 1:
            distributed.broadcast(tensor.detach(), src=owner)

    def numbers(self, *values: float) -> list[list[float]]:
        """Everybody's `values`, by rank; nobody gets them before all have come."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(all_of_them, mine)
        found: list[list[float]] = torch.stack(all_of_them).tolist()
        return found

    def wait(self) -> None:
        """Go on when all have come here."""
        self.numbers(0.0)

    def share(self, items: list[int]) -> list[int]:
        """This rank's part of `items`, whose number `size` divides; parts in the order of ranks make the whole."""
        part = len(items) // self.size
        return items[self.rank * part : (self.rank + 1) * part]


ALONE = Team()


@contextmanager
def joined(device: str) -> Iterator[Team]:
    """The team of the processes that torchrun started, of which this one works on `device`; NCCL on GPUs, else gloo.

    After an error the group is left as it is: closing it would wait for the others.
    """
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        options: dict[str, Any] = {"backend": "nccl", "device_id": torch.device(device)}
    else:
        options = {"backend": "gloo"}
    distributed.init_process_group(timeout=PATIENCE, **options)
    yield Team(distributed.get_rank(), distributed.get_world_size(), device)
    distributed.destroy_process_group()
