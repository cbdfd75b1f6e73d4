"""A block's forward over the same inputs, run again and again while its linears are replaced, none of it twice.

What has been computed before the first linear that is still to be replaced is final. Run again, the block's layers and
its attention give back what they gave; only what its own code does between them is done anew. The same operations on
the same tensors: the same bits as from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class _Result:
    call: str
    value: Any
    versions: tuple[int, ...] | None


class ForwardLog:
    """The final results of one forward: those of its first calls, in order; an outer call stands for its inner ones.

    Keeps at most `limit` bytes; what would come after them is computed again. A block that writes into a result, which
    none of the built-in families does, loses its log for good: it runs from the start every time.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.results: list[_Result] = []
        self.position, self.final = 0, True

    def restart(self) -> None:
        """The forward begins again."""
        self.position, self.final = 0, True
        if any(_versions(result.value) != result.versions for result in self.results):
            self.results, self.limit = [], 0

    def stop(self) -> None:
        """What follows in this forward is not final."""
        self.final = False

    def call(self, name: str, compute: Callable[[], Any]) -> Any:
        """The known result of this call, or that of `compute`, which is kept if it is final."""
        start = self.position
        if start < len(self.results) and self.results[start].call == name:
            self.position += 1
            return self.results[start].value
        value = compute()
        if self.final and self._fits(start, value) and _versions(value) is not None:
            self.results[start:] = [_Result(name, value, _versions(value))]
            self.position = start + 1
        else:
            self.stop()  # else a later call could be taken for this one
        return value

    def _fits(self, start: int, value: Any) -> bool:
        return _bytes([result.value for result in self.results[:start]]) + _bytes(value) <= self.limit


@contextmanager
def logged(block: nn.Module, log: ForwardLog) -> Iterator[None]:
    """While it lasts, the layers inside `block`, and its attention, ask `log` first. Its calls begin again."""
    log.restart()
    names = {module: name for name, module in block.named_modules() if module is not block}
    with ExitStack() as stack:
        for module, name in names.items():
            stack.enter_context(_asking(module, name, log))
        stack.enter_context(_attention_asking(names, log))
        yield


@contextmanager
def _asking(module: nn.Module, name: str, log: ForwardLog) -> Iterator[None]:
    own, forward = "forward" in vars(module), module.forward
    vars(module)["forward"] = lambda *args, **options: log.call(name, lambda: forward(*args, **options))
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own:
            vars(module)["forward"] = forward


@contextmanager
def _attention_asking(names: Mapping[nn.Module, str], log: ForwardLog) -> Iterator[None]:
    """Attention is a function that transformers looks up by name: put one in its place there that asks."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    functions: Any = ALL_ATTENTION_FUNCTIONS

    def asking(attend: Callable[..., Any]) -> Callable[..., Any]:
        def ask(module: nn.Module, *args: Any, **options: Any) -> Any:
            if module not in names:
                return attend(module, *args, **options)
            return log.call(f"attention of {names[module]}", lambda: attend(module, *args, **options))

        return ask

    used = {getattr(getattr(module, "config", None), "_attn_implementation", None) for module in names}
    before = {name: functions[name] for name in used if name in functions}
    functions.update({name: asking(attend) for name, attend in before.items()})
    try:
        yield
    finally:
        for name, attend in before.items():
            del functions[name]
            if functions.get(name) is not attend:  # It was an override itself.
                functions[name] = attend


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))


def _versions(value: Any) -> tuple[int, ...] | None:
    """How often each tensor of a result has been written to; None if that is not counted, as in inference mode."""
    try:
        return tuple(tensor._version for tensor in _tensors(value))
    except (AttributeError, RuntimeError):
        return None


def _bytes(value: Any) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(value))
