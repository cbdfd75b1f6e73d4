"""What a table is made of before any number is known: rows of cells, each naming the measurements it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from oaem.config.grid import Run

Kind = Literal["perplexity", "downstream", "time", "layers"]
EVERY = "*"  # as a dataset: all of them, for example every linear layer
NOT_APPLICABLE = "n/a"
Number = float | str


@dataclass(frozen=True)
class Source:
    """One measurement: a run, or by its name the unquantised model, and what was measured on it."""

    target: Run | str
    stage: str
    kind: Kind
    dataset: str
    metric: str


def single(values: Sequence[float]) -> Number:
    """The cell is its one measurement."""
    (value,) = values
    return value


def average(values: Sequence[float]) -> Number:
    """Mean of the measurements, such as the six accuracies under "Avg"."""
    return sum(values) / len(values)


@dataclass(frozen=True)
class Cell:
    """A number of a table: for each seed its measurements and how they combine.

    `absent` gives the reason when the grid cannot have the cell (or `NOT_APPLICABLE` where the paper prints a dash);
    `constant` is a value that follows from the configuration alone.
    """

    sources: dict[int | None, tuple[Source, ...]] = field(default_factory=dict)
    combine: Callable[[Sequence[float]], Number] = single
    absent: str = ""
    constant: Number | None = None

    def of_seed(self, seed: int) -> Cell:
        """The same cell with the measurements of one seed alone, and those that no seed changes."""
        return replace(self, sources={key: value for key, value in self.sources.items() if key in (seed, None)})


@dataclass(frozen=True)
class Column:
    """A numeric column: `key` is the paper's name for it, `slug` what this grid's file calls it.

    Several seeds of a `ratio` (greedy over OA-EM of the same seed) are averaged as logarithms and have an interval.
    What spans orders of magnitude has `significant` digits instead of decimals.
    """

    key: str
    header: str
    decimals: int = 2
    slug: str = ""
    unit: Literal["", "seconds", "text"] = ""
    ratio: bool = False
    significant: bool = False

    @property
    def name(self) -> str:
        """The column's name in the written file, without the suffix."""
        return self.slug or self.key


@dataclass(frozen=True)
class Row:
    """Labels that identify a row, and its cells by column key."""

    labels: dict[str, str | int | None]
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Layout:
    """A table without numbers; `model` is what its caption calls the model that stands in the paper's place."""

    name: str
    subject: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    model: str = ""


def derive(function: Callable[..., float], *cells: Cell) -> Cell:
    """A cell computed seed by seed from others of one measurement each, such as a gap or a ratio."""
    absent = next((cell.absent for cell in cells if cell.absent), "")
    if absent:
        return Cell(absent=absent)
    seeds = [seed for seed in cells[0].sources if all(seed in cell.sources for cell in cells)]
    if not seeds:
        return Cell(absent="no seed in common")
    sources = {seed: tuple(source for cell in cells for source in cell.sources[seed]) for seed in seeds}
    return Cell(sources, lambda values: function(*values))
