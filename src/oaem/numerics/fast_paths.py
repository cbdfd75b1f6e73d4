"""The choice of a fast path: a formula names its kernels by device, and every call takes the one of its tensors.

    @fast_path("cuda", "oaem.quantization.kernels.cuda.clusters:best_entries_triton", when=fits_kernels)
    @fast_path("cpu", "oaem.quantization.kernels.cpu.clusters:best_entries_numba")
    def best_entries(vectors, maps, offsets):
        ...the formula itself, on any device: the oracle

Kernels are imported when they are first called, so a formula never imports one and a machine needs the packages of its
own device alone. Where a kernel's package is missing, one line says so and the formula itself is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, update_wrapper
from importlib import import_module
from typing import Any, Generic, ParamSpec, TypeVar

from torch import Tensor, nn

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

_switched_off: list[frozenset[Any]] = []  # By each `plain_paths` around us: these formulas, or all if there are none.


@dataclass(frozen=True)
class FastPath:
    """One kernel of a formula. `name` is module:attribute; `when` says from the arguments whether it can serve them."""

    name: str
    when: Callable[..., bool] | None

    @cached_property
    def kernel(self) -> Callable[..., Any] | None:
        """The kernel; None if a package that it needs is not installed."""
        module, _, attribute = self.name.partition(":")
        try:
            found: Callable[..., Any] = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] == "oaem":
                raise
            log.warning("%s is not installed: %s gives way to its plain formula, and is slower", error.name, self.name)
            return None
        return found


class Formula(Generic[P, R]):
    """A formula with its fast paths; called like the function that it is made from."""

    def __init__(self, plain: Callable[P, R]):
        self.plain = plain
        self.paths: dict[str, FastPath] = {}
        update_wrapper(self, plain)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """By the fast path of the device that the first tensor (or module) lies on, if it has one that fits."""
        return self.choose(*args, **kwargs)(*args, **kwargs)

    def choose(self, *args: P.args, **kwargs: P.kwargs) -> Callable[P, R]:
        """What a call with these arguments runs: a kernel, or `plain`."""
        path = self.paths.get(_device_type((*args, *kwargs.values())))
        if path is None or any(not off or self in off for off in _switched_off):
            return self.plain
        if path.when is not None and not path.when(*args, **kwargs):
            return self.plain
        return path.kernel or self.plain

    def oracle(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The formula without any fast path, its own or of formulas that it calls."""
        with plain_paths():
            return self.plain(*args, **kwargs)


def fast_path(
    device: str, name: str, when: Callable[..., bool] | None = None
) -> Callable[[Callable[P, R]], Formula[P, R]]:
    """Give a formula the kernel `name` (module:attribute, with the formula's arguments) for tensors on `device`.

    when: called with the arguments, says whether the kernel can serve them; always, if it is None.
    """

    def decorate(formula: Callable[P, R]) -> Formula[P, R]:
        decorated = formula if isinstance(formula, Formula) else Formula(formula)
        decorated.paths[device] = FastPath(name, when)
        return decorated

    return decorate


@contextmanager
def plain_paths(*formulas: Formula[Any, Any]) -> Iterator[None]:
    """Run the body without the fast paths of `formulas`, or without any if none is named; in all threads."""
    _switched_off.append(frozenset(formulas))
    try:
        yield
    finally:
        _switched_off.pop()


def _device_type(arguments: tuple[Any, ...]) -> str:
    for argument in arguments:
        if isinstance(argument, Tensor):
            return argument.device.type
        if isinstance(argument, nn.Module):
            return next(argument.parameters()).device.type
    raise TypeError("the choice of a fast path needs a tensor or a module among the arguments")
