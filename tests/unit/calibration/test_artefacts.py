"""Block artefacts: exact, deterministic bytes, and never trusted when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oaem.calibration import artefacts
from oaem.calibration.activations import read_activations, write_activations
from oaem.calibration.artefacts import QuantizedState
from oaem.errors import UserError
from oaem.quantization.weight import AdditiveWeight
from oaem.runtime.provenance import checksum


def some_state(seed: int = 0, nbits: int = 4) -> QuantizedState:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**nbits, (6, 3, 2), generator=draw)
    weight = AdditiveWeight(codes, torch.randn(2, 2**nbits, 4, generator=draw), torch.rand(6, generator=draw))
    return QuantizedState({"mlp.up_proj": weight}, {"norm.weight": torch.randn(12, generator=draw).bfloat16()})


@pytest.mark.parametrize(("nbits", "stored"), [(4, torch.uint8), (8, torch.uint8), (9, torch.uint16)])
def test_a_state_comes_back_exactly(tmp_path: Path, nbits: int, stored: torch.dtype) -> None:
    state = some_state(nbits=nbits)
    artefacts.save_state(tmp_path / "a.safetensors", state, {"x": 1})
    again, metadata = artefacts.load_state(tmp_path / "a.safetensors")
    assert metadata == {"x": 1}
    weight, expected = again.linears["mlp.up_proj"], state.linears["mlp.up_proj"]
    assert weight.codes.dtype == stored
    assert torch.equal(weight.codes.long(), expected.codes)
    assert torch.equal(weight.dequantize(), expected.dequantize())
    assert torch.equal(again.tensors["norm.weight"], state.tensors["norm.weight"])


def test_equal_states_are_equal_bytes(tmp_path: Path) -> None:
    metadata = {name: index for index, name in enumerate("zyxwvutsrq")}
    sums = {artefacts.save_state(tmp_path / f"{i}.safetensors", some_state(), metadata) for i in range(5)}
    assert len(sums) == 1
    assert checksum(tmp_path / "0.safetensors") in sums


def test_a_file_that_is_no_artefact_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    for name in ("a", "absent"):
        with pytest.raises(UserError, match=rf"{name}\.safetensors.*delete it"):
            artefacts.load_state(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_prove_themselves_whole(tmp_path: Path, dtype: torch.dtype) -> None:
    hidden = torch.randn(2, 5, 8).to(dtype)
    write_activations(tmp_path, 4, hidden, "f")
    found = read_activations(tmp_path, 4, "f")
    assert found is not None
    assert torch.equal(found, hidden)
    assert read_activations(tmp_path, 4, "other") is None
    assert read_activations(tmp_path, 5, "f") is None
    path = tmp_path / "0004.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert read_activations(tmp_path, 4, "f") is None


@pytest.mark.parametrize("place", [0, 70_000, 131_000, -1])
def test_one_flipped_bit_anywhere_in_large_activations_is_seen(tmp_path: Path, place: int) -> None:
    hidden = torch.randn(3, 100, 120)  # more than two pieces and a rest
    write_activations(tmp_path, 1, hidden, "f")
    path = tmp_path / "0001.safetensors"
    content = bytearray(path.read_bytes())
    start = len(content) - hidden.nbytes
    content[place if place < 0 else start + place] ^= 4
    path.write_bytes(bytes(content))
    assert read_activations(tmp_path, 1, "f") is None
