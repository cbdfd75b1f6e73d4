"""Block artefacts: exact, deterministic bytes, and never trusted when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oaem.calibration import activations, artefacts
from oaem.calibration.activations import ActivationWriter, read_activations, write_activations
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


def test_activations_are_handed_on_from_block_to_block(tmp_path: Path) -> None:
    """Those of a block go when the next one's are whole and asked for, not before."""
    blocks = [torch.randn(2, 5, 8) for _ in range(4)]
    names = [f"{index:04d}.safetensors" for index in range(4)]
    write_activations(tmp_path, 0, blocks[0], "f")
    with ActivationWriter(tmp_path, "f") as writer:
        writer.write(1, blocks[1])
        assert (tmp_path / names[0]).exists()
        writer.write(2, blocks[2])
        assert not (tmp_path / names[0]).exists()
        writer.wait()
        assert [path.name for path in tmp_path.iterdir()] == [names[2]]
        writer.write(3, blocks[3])
    assert [path.name for path in tmp_path.iterdir()] == [names[3]]
    found = read_activations(tmp_path, 3, "f")
    assert found is not None
    assert torch.equal(found, blocks[3])


def test_what_goes_wrong_in_storing_activations_is_raised_and_nothing_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_activations(tmp_path, 0, torch.ones(1, 2, 8), "f")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(activations, "_store", full)
    for again in (True, False):
        with pytest.raises(OSError, match="No space left"), ActivationWriter(tmp_path, "f") as writer:
            writer.write(1, torch.ones(1, 2, 8))
            if again:
                writer.write(2, torch.ones(1, 2, 8))
        assert read_activations(tmp_path, 0, "f") is not None
    with pytest.raises(ValueError, match="of the body"), ActivationWriter(tmp_path, "f") as writer:
        writer.write(1, torch.ones(1, 2, 8))
        raise ValueError("of the body")
