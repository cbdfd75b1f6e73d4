"""The grid as a configuration writes it: entries, each the product of its axes, and the geometries they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated

from pydantic import Field

from oaem.config.geometry import Geometry
from oaem.config.grid import Run
from oaem.config.model_source import Name
from oaem.config.settings import Count, PositiveInt, Settings


class GeometrySpec(Settings):
    """A codebook geometry; its rate is num_codebooks * nbits / group_size."""

    num_codebooks: Annotated[int, Field(gt=0, le=16)]
    nbits: Annotated[int, Field(gt=0, le=16)]
    group_size: Annotated[int, Field(gt=0, le=64)]

    @property
    def geometry(self) -> Geometry:
        """The same as the maths and the results paths know it."""
        return Geometry(self.num_codebooks, self.nbits, self.group_size)


class SearchBudget(Settings):
    """One point of the search axis: beam width b and the epoch limit e."""

    beam_width: Annotated[int, Field(gt=0, le=64)]
    max_epochs: PositiveInt


class GridEntry(Settings):
    """A block of the grid: the product of its axes."""

    model: Name
    bpp: tuple[Name, ...] = Field(min_length=1, description="Keys of `geometries`.")
    init: tuple[Name, ...] = Field(
        min_length=1, description="Initialisations: greedy, oaem, oaem_exact or a plug-in's."
    )
    search: tuple[SearchBudget, ...] = Field(min_length=1)
    seeds: tuple[Count, ...] = Field((42,), min_length=1)
    downstream: bool = Field(True, description="Zero-shot tasks on these runs, where evaluation.downstream has any.")

    @property
    def size(self) -> int:
        """How many runs it has, counted before any is made: a slip of the pen may ask for millions."""
        return len(self.bpp) * len(self.init) * len(self.search) * len(self.seeds)

    def runs(self, geometries: Mapping[str, GeometrySpec]) -> Iterator[Run]:
        """Its runs, in the order of the axes; the last one, seeds, goes fastest."""
        for bpp, search, init, seed in product(self.bpp, self.search, self.init, self.seeds):
            yield Run(self.model, geometries[bpp].geometry, init, search.beam_width, search.max_epochs, seed)

    def has(self, run: Run, geometries: Mapping[str, GeometrySpec]) -> bool:
        """Whether `run` is one of this entry's."""
        search = SearchBudget(beam_width=run.beam_width, max_epochs=run.max_epochs)
        rates = [geometries[bpp].geometry for bpp in self.bpp]
        named = run.model == self.model and run.init in self.init and run.seed in self.seeds
        return named and search in self.search and run.geometry in rates
