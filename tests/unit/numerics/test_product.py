from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oaem.numerics import onednn, product
from oaem.numerics.onednn import product_library
from oaem.numerics.product import matrix_product
from oaem.runtime.processor import Processor, processor

GONE = RuntimeError("no such operator"), AttributeError("no such operator"), TypeError("not called like this")


@pytest.fixture(params=["torch", "onednn"] if onednn._fault_of_onednn() is None else ["torch"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each library that there is in turn, whatever this processor would choose."""
    monkeypatch.setattr(product, "product_library", lambda: request.param)
    return request.param


def views(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same numbers in other layouts of memory."""
    wide = torch.zeros(matrix.shape[0], matrix.shape[1] + 3)
    wide[:, 1:-2] = matrix
    return {"rows": matrix, "columns": matrix.T.contiguous().T, "gaps": wide[:, 1:-2], "both": wide.T[1:-2].T}


@pytest.mark.parametrize("left", ["rows", "columns", "gaps", "both"])
@pytest.mark.parametrize("right", ["rows", "columns", "gaps", "both"])
def test_equals_the_product_in_float64_whatever_the_layout(library: str, left: str, right: str) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(33, 70, generator=generator), torch.randn(70, 19, generator=generator)
    found = matrix_product(views(a)[left], views(b)[right])
    # 70 terms of size 1 in float32: no lower precision may hide in the fast path.
    torch.testing.assert_close(found.double(), a.double() @ b.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n", "k", "m"), [(0, 3, 2), (2, 0, 3), (2, 3, 0), (1, 1, 1)])
def test_small_and_empty(library: str, n: int, k: int, m: int) -> None:
    assert torch.equal(matrix_product(torch.ones(n, k), torch.ones(k, m)), torch.full((n, m), float(k)))


def test_float64_stays_float64() -> None:
    a = torch.rand(5, 6, dtype=torch.float64)
    assert torch.equal(matrix_product(a, a.T), a @ a.T)


def of(vendor: str, *flags: str) -> Processor:
    return Processor("name", f"{vendor} family 1 model 2", vendor, frozenset(flags))


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (of("AuthenticAMD", "avx2", "avx512f"), "onednn"),
        (of("AuthenticAMD", "avx2"), "torch"),
        (of("GenuineIntel", "avx512f", "amx_tile"), "torch"),
        (of(""), "torch"),
    ],
)
def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch, found: Processor, wanted: str) -> None:
    monkeypatch.setattr(onednn, "processor", lambda: found)
    monkeypatch.setattr(onednn, "_fault_of_onednn", lambda: None)
    assert product_library.__wrapped__() == wanted


@pytest.mark.parametrize("deed", [*GONE, "wrong numbers"], ids=lambda deed: type(deed).__name__)
def test_an_operator_that_does_not_do_its_work_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, deed: Exception | str
) -> None:
    def stand_in(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if isinstance(deed, Exception):
            raise deed
        return (left @ right).bfloat16().float()

    monkeypatch.setattr(onednn, "processor", lambda: of("AuthenticAMD", "avx512f"))
    monkeypatch.setattr(onednn, "product_onednn", stand_in)
    with caplog.at_level("DEBUG"):
        assert product_library.__wrapped__() == "torch"
    assert "PyTorch's own" in caplog.text


def test_the_processor_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = (
        "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Xeon: 4\nflags\t\t: fpu amx_tile\n"
    )
    (tmp_path / "cpuinfo").write_text(f"{entry}\n{entry.replace('143', '144')}")
    monkeypatch.setattr("oaem.runtime.processor.CPUINFO", tmp_path / "cpuinfo")
    assert processor.__wrapped__() == Processor(
        "Xeon: 4", "GenuineIntel family 6 model 143", "GenuineIntel", frozenset({"fpu", "amx_tile"})
    )
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp bf16\n")
    assert processor.__wrapped__().flags == frozenset({"fp", "bf16"}), "an Arm processor's"
    monkeypatch.setattr("oaem.runtime.processor.CPUINFO", tmp_path / "missing")
    nothing = processor.__wrapped__()
    assert nothing.name and not nothing.kind and not nothing.vendor and not nothing.flags
