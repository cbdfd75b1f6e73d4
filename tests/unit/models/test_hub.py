"""The way from the hub, with its real client and a hub on this machine: whole, checked, once, and without secrets."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from oaem.config.schema import Corpus, ModelSource
from oaem.corpora.sources import documents
from oaem.errors import UserError
from oaem.models.load import load_model
from oaem.models.source import materialise
from tests.unit.models.hub_server import COMMIT, Hub, Repository, serve

REPO, WEIGHTS, TOKEN = "someone/tiny", "model.safetensors", "hf_secretsecretsecret"
SOURCE = ModelSource(source="hub", label="Tiny", repo=REPO, revision=COMMIT)
SHARDS = {"en/c4.json.gz": "gz", "wikitext/test.parquet": "parquet"}
TEXTS = [f"Document {index}: {'water and paper ' * index}" for index in range(40)]
# Bytes the client takes at a time; its own ten million would swallow these small files whole.
PIECE = 1000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def shard(kind: str) -> bytes:
    if kind == "gz":
        return gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode())
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), stream)
    return stream.getvalue()


@pytest.fixture
def hub(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a tiny model and two shards of text; the client's cache is empty."""
    files = {path.name: path.read_bytes() for path in tiny_llama.iterdir()}
    # What must never come along.
    files |= {
        "modeling_evil.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickle",
        "original/consolidated.pth": b"x",
    }
    served = Hub(
        models={REPO: Repository(files, {WEIGHTS, "tokenizer.json"})},
        datasets={"owner/text": Repository({name: shard(kind) for name, kind in SHARDS.items()}, set(SHARDS))},
    )
    with serve(served):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.endpoint)
        address = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", served.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", PIECE)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield served


def part_of_text(name: str, **keys: Any) -> Corpus:
    return Corpus(source="hub", repo="owner/text", revision=COMMIT, files=(name,), **keys)


# --- a model


def test_a_model_comes_once_checked_and_without_code(hub: Hub, tiny_llama: Path, tmp_path: Path) -> None:
    facts = materialise(SOURCE, tmp_path / "out")
    got = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert got == {path.name: path.read_bytes() for path in tiny_llama.iterdir()}
    assert facts["revision"] == COMMIT
    assert facts["files"] == {name: sha256(content) for name, content in got.items()}
    assert sorted(request.path.rpartition("/")[2] for request in hub.content() if "cdn" not in request.path) == sorted(
        got
    ), "each file is asked for once"
    model = load_model(tmp_path / "out", torch.float32, "cpu")
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()

    hub.requests.clear()
    assert materialise(SOURCE, tmp_path / "again") == facts
    assert hub.requests == []


def test_an_unpinned_model_is_pinned_by_what_came(hub: Hub, tmp_path: Path) -> None:
    source = SOURCE.model_copy(update={"revision": None})
    assert materialise(source, tmp_path / "out")["revision"] == COMMIT
    hub.requests.clear()
    assert materialise(source, tmp_path / "again")["revision"] == COMMIT
    assert hub.content() == []


def test_a_broken_connection_goes_on_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.break_after[WEIGHTS] = 20 * PIECE + 7
    assert materialise(SOURCE, tmp_path / "out")["files"][WEIGHTS] == sha256(hub.models[REPO].files[WEIGHTS])
    ranges = [
        request.range for request in hub.content() if request.path.startswith("/cdn/") and WEIGHTS in request.path
    ]
    assert ranges == [None, f"bytes={20 * PIECE}-"]


def test_a_killed_download_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    """In a process of its own, which is killed while the hub keeps it waiting."""
    content = bytes(range(256)) * 400
    hub.datasets["owner/text"] = Repository({"big.txt": content}, {"big.txt"})
    hub.stall_after["big.txt"] = 60_000
    script = (
        "from huggingface_hub import constants; from oaem.models.download import fetch_file;"
        f"constants.DOWNLOAD_CHUNK_SIZE = {PIECE};"
        f"print(fetch_file('owner/text', 'big.txt', '{COMMIT}', 'dataset')[1])"
    )
    home = tmp_path / "home"
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size for part in home.rglob("*.part")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    (part,) = home.rglob("*.part")
    there = part.stat().st_size
    hub.requests.clear()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == sha256(content)
    assert [request.range for request in hub.content() if "cdn" in request.path] == [f"bytes={there}-"]
    assert not list(home.rglob("*.part"))


# --- damage


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_damage_on_the_way_is_noticed_and_mended(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Large files are known by their SHA-256, small ones by git's SHA-1."""
    hub.damage[name] = 1
    facts = materialise(SOURCE, tmp_path / "out")
    assert facts["files"][name] == sha256(hub.models[REPO].files[name])
    assert f"{REPO}: {name} is damaged" in caplog.text


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_damage_that_stays_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.damage[name] = 9
    with pytest.raises(UserError, match=f"{REPO}: {name} came damaged twice"):
        materialise(SOURCE, tmp_path / "out")
    assert hub.damage[name] == 7
    assert not (tmp_path / "out").exists()
    hub.damage.clear()
    materialise(SOURCE, tmp_path / "out")


def test_a_damaged_part_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    """What lay on this machine was wrong: the rest fits, the whole does not, and is fetched anew."""
    blobs = tmp_path / "cache" / "models--someone--tiny" / "blobs"
    blobs.mkdir(parents=True)
    content = hub.models[REPO].files[WEIGHTS]
    (blobs / f"{sha256(content)}.part").write_bytes(b"x" * 5000)
    assert materialise(SOURCE, tmp_path / "out")["files"][WEIGHTS] == sha256(content)
    assert [r.range for r in hub.content() if "cdn" in r.path and WEIGHTS in r.path] == ["bytes=5000-", None]


def test_a_part_that_is_too_long_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    blobs = tmp_path / "cache" / "models--someone--tiny" / "blobs"
    blobs.mkdir(parents=True)
    content = hub.models[REPO].files[WEIGHTS]
    (blobs / f"{sha256(content)}.part").write_bytes(content + b"more")
    assert materialise(SOURCE, tmp_path / "out")["files"][WEIGHTS] == sha256(content)


def test_checksums_of_the_configuration(hub: Hub, tiny_llama: Path, tmp_path: Path) -> None:
    right = {WEIGHTS: sha256(hub.models[REPO].files[WEIGHTS]).upper()}
    checked = ModelSource.model_validate({**SOURCE.model_dump(), "sha256": right})
    materialise(checked, tmp_path / "out")
    hub.requests.clear()
    for name, message in [(WEIGHTS, "expects 0000"), ("absent.json", "`sha256` names absent.json")]:
        wrong = SOURCE.model_copy(update={"sha256": {name: "0" * 64}})
        with pytest.raises(UserError, match=message):
            materialise(wrong, tmp_path / "wrong")
        mirror = ModelSource(source="folder", label="x", path=str(tiny_llama), sha256={name: "0" * 64})
        with pytest.raises(UserError, match=message):
            materialise(mirror, tmp_path / "wrong")
    assert hub.content() == [], "what the hub itself calls right is not fetched again"
    assert not (tmp_path / "wrong").exists()
    mirror = ModelSource(source="folder", label="x", path=str(tiny_llama), sha256=right)
    assert materialise(mirror, tmp_path / "mirrored")["files"][WEIGHTS] == right[WEIGHTS].lower()


# --- refusals


@pytest.mark.parametrize(
    ("token", "refusal", "message"),
    [
        (TOKEN, (401, None), "refuses the token in HF_TOKEN: it is invalid, has expired"),
        (TOKEN, (403, "GatedRepo"), "is gated. Accept its licence"),
        (None, (401, "GatedRepo"), "is gated. Accept its licence"),
    ],
)
def test_who_may_not_read_is_told_how(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    token: str | None, refusal: tuple[int, str | None], message: str,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    hub.token, hub.refusal = "another", refusal
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for use in (
        lambda: materialise(SOURCE, tmp_path / "out"),
        lambda: list(documents(part_of_text("en/c4.json.gz"), "all")),
    ):
        with pytest.raises(UserError, match=message) as caught:
            use()
        assert TOKEN not in str(caught.value)
    assert TOKEN not in caplog.text
    assert not (tmp_path / "out").exists()


def test_the_token_opens_a_gated_model_and_stays_secret(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    facts = materialise(SOURCE.model_copy(update={"gated": True}), tmp_path / "out")
    assert TOKEN not in json.dumps(facts) + caplog.text
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert stored
    assert not any(TOKEN.encode() in path.read_bytes() for path in stored)


def test_a_hub_that_goes_away_midway(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.gone_after[WEIGHTS] = 30 * PIECE
    with pytest.raises(UserError, match="hub cannot be reached") as caught:
        materialise(SOURCE, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# --- text


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_of_text_comes_once_and_checked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    corpus = part_of_text(name)
    hub.damage[name] = 2  # the connection breaks before the first flipped bit
    hub.break_after[name] = len(hub.datasets["owner/text"].files[name]) // 2
    assert list(documents(corpus, "all")) == TEXTS
    hub.requests.clear()
    assert list(documents(corpus, "all")) == TEXTS
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert list(documents(corpus, "all")) == TEXTS
    assert hub.requests == []
    (blob,) = [path for path in (tmp_path / "cache").rglob("blobs/*") if len(path.name) == 64]
    blob.write_bytes(blob.read_bytes()[:-1])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert list(documents(corpus, "all")) == TEXTS, "damage on this machine's disk is mended too"


def test_a_shard_that_is_another_or_none(hub: Hub) -> None:
    name = "en/c4.json.gz"
    with pytest.raises(UserError, match="expects 0000"):
        list(documents(part_of_text(name, sha256={name: "0" * 64}), "all"))
    with pytest.raises(UserError, match=r"owner/text: has no file 'no-such\.parquet' at revision '0123"):
        list(documents(part_of_text("no-such.parquet"), "all"))
