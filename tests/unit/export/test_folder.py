"""The exported folder: loads in transformers with aqlm, gives the dense model's logits, generates, has a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from oaem.calibration.artefacts import QuantizedState
from oaem.config.geometry import Geometry
from oaem.config.grid import Run
from oaem.errors import UserError
from oaem.export.folder import common_geometry, export, pack_codes, quantization_config, true_bits
from oaem.export.model_card import CardData, render
from oaem.models.families import BUILT_IN, linear_names
from oaem.models.load import block_count, linear_shapes, read_tensors
from oaem.quantization.weight import AdditiveWeight
from oaem.runtime.seeds import generator
from tests.conftest import FAMILIES, HIDDEN, VOCABULARY

# What a reader of the export runs: nothing of this project. aqlm's CPU kernel needs one numba thread.
READER = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
tokens = torch.arange(3, 15).reshape(2, 6)
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    model.eval()
    with torch.no_grad():
        logits = model(tokens).logits
    generated = model.generate(tokens[:1], max_new_tokens=5, do_sample=False)
    save_file({"logits": logits, "generated": generated}, folder + "/read.safetensors")
"""
CASES = {
    "llama-2x8g8": ("llama", True, Geometry(2, 8, 8)),
    "qwen2-2x6g6": ("qwen2", True, Geometry(2, 6, 6)),
    "llama-1x10g4-untied": ("llama", False, Geometry(1, 10, 4)),
    "mistral-2x6g6": ("mistral", True, Geometry(2, 6, 6)),
    "qwen3-2x8g8": ("qwen3", True, Geometry(2, 8, 8)),
    "gemma3_text-2x8g8": ("gemma3_text", True, Geometry(2, 8, 8)),
    "phi3-2x8g8-untied": ("phi3", False, Geometry(2, 8, 8)),
    "olmo2-2x6g6": ("olmo2", True, Geometry(2, 6, 6)),
}
assert {family for family, _, _ in CASES.values()} == set(FAMILIES)
TOKENS = torch.arange(3, 15).reshape(2, 6)


def random_state(folder: Path, geometry: Geometry) -> QuantizedState:
    """Random additive weights of the size of the model's own, and other norms and biases than it has."""
    draws, state = generator(0, "export", geometry.name), QuantizedState()
    for index in range(block_count(folder)):
        for name, (rows, columns) in linear_shapes(folder).items():
            codes = torch.randint(
                geometry.codebook_size, (rows, columns // geometry.group_size, geometry.num_codebooks), generator=draws
            )
            shape = (geometry.num_codebooks, geometry.codebook_size, geometry.group_size)
            scales = 1 + torch.rand(rows, generator=draws)
            full = f"model.layers.{index}.{name}"
            state.linears[full] = AdditiveWeight(codes, 0.07 * torch.randn(shape, generator=draws), scales)
    for name, tensor in read_tensors(folder, "model.layers.").items():
        if name.removesuffix(".weight") not in state.linears:
            state.tensors[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=draws)
    return state


def dense(folder: Path, state: QuantizedState) -> torch.nn.Module:
    """The oracle: the original model with every weight written in place, dequantised."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    values = {f"{name}.weight": weight.dequantize() for name, weight in state.linears.items()} | state.tensors
    if "lm_head.weight" in values:
        model.lm_head.weight = torch.nn.Parameter(values["lm_head.weight"])
    unknown = model.load_state_dict(values, strict=False).unexpected_keys
    assert not unknown
    return model


def card(geometry: Geometry, **others: object) -> CardData:
    return CardData(Run("tiny", geometry, "oaem", 4, 2, 42), "Tiny", "someone/tiny", "pre_pv", **others)


def export_case(name: str, make: Callable[[str, bool], Path], target: Path) -> tuple[Path, QuantizedState]:
    """One of CASES exported to `target`; its original model and its state."""
    family, tied, geometry = CASES[name]
    source = make(family, tied)
    state = random_state(source, geometry)
    if not tied:
        state.tensors["lm_head.weight"] = read_tensors(source)["lm_head.weight"] * 1.5
    export(source, state, target, card(geometry))
    return source, state


@pytest.mark.slow
def test_reads_as_the_dense_model(tiny_model: Callable[[str, bool], Path], tmp_path: Path) -> None:
    """Same weights, but aqlm adds table entries group by group where the dense model multiplies: float32 rounding.

    Of every family. The logits are of the order of 1; differences of up to 4e-6 were seen, 3e-5 are allowed.
    """
    made = {name: export_case(name, tiny_model, tmp_path / name) for name in CASES}
    command = [sys.executable, "-W", "ignore", "-c", READER, *(str(tmp_path / name) for name in CASES)]
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=environment, timeout=300)
    for name, (source, state) in made.items():
        model, read = dense(source, state), load_file(tmp_path / name / "read.safetensors")
        with torch.no_grad():
            logits = model(TOKENS).logits
        assert logits.std() > 0.3
        torch.testing.assert_close(
            read["logits"], logits, rtol=0, atol=3e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert torch.equal(read["generated"], model.generate(TOKENS[:1], max_new_tokens=5, do_sample=False)), name


@pytest.mark.parametrize("name", CASES)
def test_folder_is_complete(name: str, tiny_model: Callable[[str, bool], Path], tmp_path: Path) -> None:
    target = tmp_path / "out"
    source, state = export_case(name, tiny_model, target)
    config = json.loads((target / "config.json").read_text())
    assert config["quantization_config"] == quantization_config(CASES[name][2], ["lm_head"])
    assert config["tie_word_embeddings"] is CASES[name][1]
    stored = load_file(target / "model.safetensors")
    assert ("lm_head.weight" in stored) is not CASES[name][1]
    assert stored["model.layers.0.mlp.down_proj.codes"].dtype == (torch.int16 if "1x10" in name else torch.int8)
    assert not any(f"{linear}.weight" in stored for linear in state.linears)
    assert (target / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "temporary folders are gone"
    if "qwen2" in name:
        bias = "model.layers.1.self_attn.q_proj.bias"
        assert torch.equal(stored[bias], state.tensors[bias])


def test_codes_wrap_and_come_back() -> None:
    for nbits, dtype in ((4, torch.int8), (8, torch.int8), (9, torch.int16), (16, torch.int16)):
        codes = torch.tensor([0, 1, 2 ** (nbits - 1) - 1, 2 ** (nbits - 1), 2**nbits - 1])
        packed = pack_codes(codes, nbits)
        assert packed.dtype == dtype
        assert packed.tolist()[3] == -(2 ** (nbits - 1))
        assert torch.equal(packed.to(torch.int64) % 2**nbits, codes)


def test_untied_by_tuning_and_still_tied(tiny_llama: Path, tmp_path: Path) -> None:
    """A head trained apart from the embeddings is kept; one that is the same is left tied."""
    geometry = Geometry(2, 4, 4)
    state = random_state(tiny_llama, geometry)
    embedding = read_tensors(tiny_llama)["model.embed_tokens.weight"]
    for name, factor in (("same", 1.0), ("apart", 1.25)):
        state.tensors |= {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding * factor}
        export(tiny_llama, state, tmp_path / name, card(geometry))
        config = json.loads((tmp_path / name / "config.json").read_text())
        stored = load_file(tmp_path / name / "model.safetensors")
        assert config["tie_word_embeddings"] is (name == "same")
        assert ("lm_head.weight" in stored) is (name == "apart")
    assert torch.equal(stored["lm_head.weight"], embedding * 1.25)


def test_partly_quantised_model_names_its_dense_linears(tiny_llama: Path, tmp_path: Path) -> None:
    geometry = Geometry(2, 4, 4)
    state = random_state(tiny_llama, geometry)
    del state.linears["model.layers.1.mlp.down_proj"]
    export(tiny_llama, state, tmp_path / "out", card(geometry))
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "model.layers.1.mlp.down_proj" in config["linear_weights_not_to_quantize"]
    assert "model.layers.1.mlp.down_proj.weight" in load_file(tmp_path / "out" / "model.safetensors")


def test_replaces_an_export_and_nothing_else(tiny_llama: Path, tmp_path: Path) -> None:
    geometry = Geometry(2, 4, 4)
    state = random_state(tiny_llama, geometry)
    export(tiny_llama, state, tmp_path / "out", card(geometry))
    (tmp_path / "out" / "stray").touch()
    export(tiny_llama, state, tmp_path / "out", card(geometry))
    assert not (tmp_path / "out" / "stray").exists()
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").touch()
    with pytest.raises(UserError, match="something else than an export"):
        export(tiny_llama, state, tmp_path / "diary", card(geometry))
    with pytest.raises(UserError, match="something else than an export"):
        export(tiny_llama, state, tiny_llama, card(geometry))
    assert (tmp_path / "diary" / "monday.txt").exists()


def test_failure_leaves_no_trace(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Geometry(2, 4, 4)
    state = random_state(tiny_llama, geometry)
    export(tiny_llama, state, tmp_path / "out", card(geometry))
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    monkeypatch.setattr("oaem.export.folder.render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(tiny_llama, state, tmp_path / "out", card(geometry))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_refuses_what_does_not_fit(tiny_llama: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    geometry = Geometry(2, 4, 4)
    state = random_state(tiny_llama, geometry)
    with pytest.raises(UserError, match="run says"):
        export(tiny_llama, state, tmp_path / "out", card(Geometry(2, 8, 8)))
    state.tensors["model.layers.0.extra.weight"] = torch.zeros(2)
    with pytest.raises(UserError, match="another model's"):
        export(tiny_llama, state, tmp_path / "out", card(geometry))
    name = next(iter(state.linears))
    mixed = {**state.linears, name: random_state(tiny_llama, Geometry(2, 6, 6)).linears[name]}
    with pytest.raises(UserError, match="one geometry"):
        common_geometry(mixed)
    odd = AdditiveWeight(torch.zeros(4, 2, 1, dtype=torch.uint8), torch.zeros(1, 12, 4), torch.ones(4))
    with pytest.raises(UserError, match="powers of two"):
        common_geometry({"odd": odd})
    table = random_state(tiny_llama, geometry)
    table.linears["model.embed_tokens"] = AdditiveWeight(
        torch.zeros(VOCABULARY, HIDDEN // 4, 2, dtype=torch.uint8), torch.zeros(2, 16, 4), torch.ones(VOCABULARY)
    )
    with pytest.raises(UserError, match=r"model\.embed_tokens is a Embedding.*linear layers alone"):
        export(tiny_llama, table, tmp_path / "out", card(geometry))
    assert not (tmp_path / "out").exists()


def test_true_bits_agree_with_the_geometry(tiny_llama: Path) -> None:
    geometry = Geometry(2, 4, 4)
    state, shapes = random_state(tiny_llama, geometry), linear_shapes(tiny_llama)
    sizes = [shapes[name] for name in linear_names(BUILT_IN[0])]
    expected = sum(geometry.true_bits(*size) * size[0] * size[1] for size in sizes) / sum(r * c for r, c in sizes)
    assert true_bits(state.linears) == pytest.approx(expected, rel=1e-12)


def test_card_shows_settings_and_numbers() -> None:
    def row(
        stage: str, dataset: str, role: str, metric: str, value: float, stderr: float | None = None
    ) -> dict[str, object]:
        return {"stage": stage, "dataset": dataset, "role": role, "label": "", "metric": metric, "value": value,
                "stderr": stderr, "n": 100 if role == "task" else None}  # fmt: skip

    rows = [
        row("fp16", "wikitext2", "far", "perplexity", 7.281),
        row("pre_pv", "wikitext2", "far", "perplexity", 16.824),
        row("pre_pv", "piqa", "task", "acc_norm", 0.7341, 0.0123),
        row("quantization", "total", "", "seconds", 99.0),
    ]
    text = render(card(Geometry(2, 8, 8), settings={"Calibration": "128 sequences"}, rows=rows), 2.125)
    assert "| wikitext2 | 7.28 | 16.82 |" in text
    assert "| piqa | acc_norm | 0.734 ± 0.012 |" in text
    assert "| Calibration | 128 sequences |" in text
    assert "| Beam width | 4 |" in text and "2.125" in text and "base_model: someone/tiny" in text
    assert "trust_remote_code" not in text and "99.0" not in text
    assert "NUMBA_NUM_THREADS" in text and "powers of two" not in text
    assert "powers of two" in render(card(Geometry(3, 8, 8)), 3.1)
    assert "stored in" not in text and "stored in 8 bits" in render(card(Geometry(2, 6, 6)), 2.1)
    assert "perplexity" not in render(card(Geometry(2, 6, 6)), 2.1).lower()
