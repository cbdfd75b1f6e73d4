"""One grid point and its place under the results folder, convertible both ways."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from oaem.config.geometry import Geometry

_SEARCH = re.compile(r"b(?P<beam>[0-9]+)-e(?P<epochs>[0-9]+)")
_SEED = re.compile(r"s(?P<seed>[0-9]+)")


@dataclass(frozen=True, order=True)
class Run:
    """A quantised model of the paper's grid: model x bits x initialisation x beam width x epochs x seed."""

    model: str
    geometry: Geometry
    init: str
    beam_width: int
    max_epochs: int
    seed: int

    @property
    def path(self) -> str:
        """Folder of the run, relative to the results folder."""
        return f"runs/{self.model}/{self.geometry.name}/{self.init}/b{self.beam_width}-e{self.max_epochs}/s{self.seed}"

    @classmethod
    def parse(cls, path: str) -> Run:
        """The run whose `path` this is; ValueError if it is none."""
        parts = PurePosixPath(path).parts
        if len(parts) != 6 or parts[0] != "runs":
            raise ValueError(f"not a run's path: {path!r}")
        _, model, geometry, init, search, seed = parts
        budget, seeded = _SEARCH.fullmatch(search), _SEED.fullmatch(seed)
        if budget is None or seeded is None:
            raise ValueError(f"not a run's path: {path!r}")
        run = cls(
            model, Geometry.parse(geometry), init, int(budget["beam"]), int(budget["epochs"]), int(seeded["seed"])
        )
        if run.path != str(PurePosixPath(path)):
            raise ValueError(f"not a run's path: {path!r} (expected {run.path})")
        return run

    def partner(self, init: str) -> Run:
        """The same grid point with another initialisation."""
        return Run(self.model, self.geometry, init, self.beam_width, self.max_epochs, self.seed)
