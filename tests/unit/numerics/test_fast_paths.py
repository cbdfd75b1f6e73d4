"""The choice of a fast path: by device and arguments, switched off from outside, and true to every formula's call."""

from __future__ import annotations

import inspect
import logging
from importlib import import_module
from pkgutil import walk_packages

import pytest
import torch
from torch import Tensor, nn

import oaem
from oaem.numerics.fast_paths import Formula, fast_path, plain_paths

HERE = __name__


def tripled(numbers: Tensor, by: float = 1.0) -> Tensor:
    return 3 * numbers * by


@fast_path("cpu", f"{HERE}:tripled", when=lambda numbers, by=1.0: by > 0)
def doubled(numbers: Tensor, by: float = 1.0) -> Tensor:
    """Not even the same numbers: the tests see which one ran."""
    return 2 * numbers * by


@fast_path("cpu", f"{HERE}:tripled")
def outer(numbers: Tensor) -> Tensor:
    return doubled(numbers) + 100


ONE = torch.ones(())


def test_the_tensors_decide() -> None:
    assert doubled(ONE) == 3
    assert doubled(ONE, by=-1.0) == -2  # the kernel does not fit
    assert doubled(ONE.to("meta")).device.type == "meta"  # another device
    assert doubled.choose(ONE.to("meta")) is doubled.plain
    assert doubled.__doc__ == doubled.plain.__doc__


def test_a_module_decides_by_its_parameters() -> None:
    where = fast_path("cpu", f"{HERE}:tripled")(lambda module: "plain")
    assert where.choose(nn.Linear(1, 1)) is tripled
    assert where(nn.Linear(1, 1, device="meta")) == "plain"
    with pytest.raises(TypeError, match="needs a tensor or a module"):
        doubled("no tensor")  # type: ignore[arg-type]


def test_an_oracle_is_plain_all_the_way_down() -> None:
    assert outer(ONE) == 3
    assert outer.oracle(ONE) == 102
    assert outer.plain(ONE) == 103
    assert outer(ONE) == 3


def test_paths_are_switched_off_together_or_one_by_one() -> None:
    with plain_paths():
        assert (doubled(ONE), outer(ONE)) == (2, 102)
    with plain_paths(outer):
        assert (doubled(ONE), outer(ONE)) == (3, 103)
        with plain_paths(doubled):
            assert (doubled(ONE), outer(ONE)) == (2, 102)
        assert doubled(ONE) == 3
    with pytest.raises(ValueError, match="left"), plain_paths():
        raise ValueError("left")
    assert doubled(ONE) == 3


def test_without_its_package_a_kernel_gives_way_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("oaem.numerics.fast_paths.import_module", missing)
    lone = fast_path("cpu", "a_compiler.kernels:go")(lambda numbers: 2 * numbers)
    with caplog.at_level(logging.WARNING):
        assert [float(lone(ONE)) for _ in range(3)] == [2, 2, 2]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["a_compiler.kernels is not installed"]
    ours = fast_path("cpu", "oaem.no_such_module:go")(lambda numbers: 2 * numbers)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        ours(ONE)


def formulas() -> dict[str, Formula]:
    """Every formula of the library that has fast paths, by module and name."""
    rooms = [name for _, name, _ in walk_packages(oaem.__path__, "oaem.") if ".kernels." not in name]
    found = {}
    for room in rooms:
        for name, value in vars(import_module(room)).items():
            if isinstance(value, Formula) and value.plain.__module__ == room:
                found[f"{room}:{name}"] = value
    return found


def test_every_kernel_is_there_and_is_called_like_its_formula() -> None:
    pytest.importorskip("triton", reason="kernels for CUDA devices are written in it")
    pairs = {(name, path) for name, formula in formulas().items() for path in formula.paths.values()}
    assert len(pairs) > 20
    for name, path in pairs:
        assert path.kernel is not None, path
        wanted, given = (list(inspect.signature(call).parameters.values()) for call in (formulas()[name], path.kernel))
        assert [part.name for part in given[: len(wanted)]] == [part.name for part in wanted], path
        assert all(part.default is not part.empty for part in given[len(wanted) :]), path


def test_kernels_lie_where_their_device_says() -> None:
    for name, formula in formulas().items():
        for device, path in formula.paths.items():
            room = path.name.split(":")[0].rpartition(".")[0]
            assert room.endswith(f"kernels.{device}") or room == "oaem.numerics", name
