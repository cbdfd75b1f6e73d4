"""The initialisations by name: those built in, and those of installed packages (sections 3.3 and 3.4).

One that is built in takes a row of this table and the function that it names. Nothing here imports torch, so that
planning and model cards can ask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from oaem.errors import UserError

ENTRY_POINTS = "oaem.initialisations"


@dataclass(frozen=True)
class Initialisation:
    """What refines a codebook, as module:function, and how a reader knows it."""

    refine: str
    label: str


BUILT_IN = {
    "greedy": Initialisation("oaem.quantization.initialise:greedy", "greedy residual k-means"),
    "oaem": Initialisation("oaem.quantization.oaem:oaem", "OA-EM, output-aware expectation-maximisation"),
    "oaem_exact": Initialisation("oaem.quantization.oaem:oaem_exact", "OA-EM with the exact M-step"),
}


def known_initialisations() -> list[str]:
    """All names: the built-in ones and those of installed plug-ins."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def label_of(name: str) -> str:
    """How a reader knows an initialisation; a plug-in's is its name."""
    return BUILT_IN[name].label if name in BUILT_IN else name


def refinement(name: str) -> Callable[..., Any]:
    """What refines a codebook (see `initialise.Refine`); UserError if it is unknown, or a plug-in cannot be loaded."""
    if name in BUILT_IN:
        module, _, function = BUILT_IN[name].refine.partition(":")
        built_in: Callable[..., Any] = getattr(import_module(module), function)
        return built_in
    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            loaded: Callable[..., Any] = point.load()
        except Exception as error:
            raise UserError(f"initialisation {name!r}: the plug-in {point.value} cannot be loaded: {error}") from error
        return loaded
    raise UserError(
        f"initialisation {name!r} is unknown; known are {', '.join(known_initialisations())}. More come from packages "
        f"with an entry point in the group {ENTRY_POINTS!r}."
    )
