"""The way from the hub, with its real client and a hub on this machine: whole, checked, once, and without secrets."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import os
import shutil
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


# Fetches files of owner/text and prints their checksums, or the one message.
FETCH = f"""
import sys
from huggingface_hub.utils import disable_progress_bars
from oaem.errors import UserError
from oaem.models.hub_files import fetch_file
disable_progress_bars()
try:
    print(*(fetch_file("owner/text", name, "{COMMIT}", "dataset")[1] for name in sys.argv[1:]))
except UserError as error:
    sys.exit(str(error))
"""


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """Variables of a process that uses `hub` and keeps its cache in `home`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**inherited, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


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
    assert sorted(request.path.rpartition("/")[2] for request in hub.content()) == sorted(got), "each is fetched once"
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
    """In a process of its own, which is killed while the hub keeps it waiting: what is whole is not fetched again."""
    contents = {"first.txt": b"first" * 100, "big.txt": bytes(range(256)) * 400}
    hub.datasets["owner/text"] = Repository(contents, {"big.txt"})
    hub.stall_after["big.txt"] = 60_000
    home = tmp_path / "home"
    command = [sys.executable, "-c", FETCH, *contents]
    process = subprocess.Popen(command, env=environment(hub, home))
    deadline = time.monotonic() + 60
    while not any(request.path.startswith("/cdn/") and request.method == "GET" for request in hub.requests):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert {path.name for path in home.rglob("snapshots/*/*")} == {"first.txt"}, "nothing half-written has a name"
    hub.requests.clear()
    done = subprocess.run(command, env=environment(hub, home), check=True, capture_output=True, text=True)
    assert done.stdout.split() == [sha256(content) for content in contents.values()]
    assert {request.path.rpartition("/")[2] for request in hub.content()} == {"big.txt"}


# --- the client's own variables, in processes of their own


def test_home_endpoint_token_and_offline_mode(hub: Hub, tmp_path: Path) -> None:
    """What the hub's users rely on: a warm cache works offline, a cold one is one message and asks nobody."""
    hub.token = TOKEN
    home = tmp_path / "home"
    variables = environment(hub, home) | {"HF_TOKEN": TOKEN}

    def fetch(*files: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", FETCH, *files]
        return subprocess.run(command, env=variables | more, capture_output=True, text=True)

    online = fetch("en/c4.json.gz")
    assert online.returncode == 0, online.stderr
    assert list(home.glob("hub/datasets--owner--text/snapshots/*/en/c4.json.gz")), "HF_HOME holds the cache"
    hub.requests.clear()
    warm = fetch("en/c4.json.gz", HF_HUB_OFFLINE="1")
    assert (warm.returncode, warm.stdout) == (0, online.stdout)
    for cold in (
        fetch(*SHARDS, HF_HUB_OFFLINE="1"),
        fetch("en/c4.json.gz", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "elsewhere")),
    ):
        assert cold.returncode == 1
        (message,) = cold.stderr.splitlines()
        assert message.startswith("owner/text: not whole on this machine, and the hub cannot be reached")
        assert "unset HF_HUB_OFFLINE" in message
    assert hub.requests == []


def test_a_model_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm cache gives the model; a cold one, one that lacks a file, and one with a damaged file each a message."""
    facts = materialise(SOURCE, tmp_path / "out")
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert materialise(SOURCE, tmp_path / "again") == facts
    (weights,) = (tmp_path / "cache").rglob(f"snapshots/*/{WEIGHTS}")
    content = weights.read_bytes()
    weights.resolve().unlink()
    weights.resolve().write_bytes(content[:-1])  # a file of its own: the models made of the first share that one
    for spoil in (lambda: None, lambda: weights.unlink(missing_ok=True), lambda: shutil.rmtree(tmp_path / "cache")):
        spoil()
        with pytest.raises(UserError, match=f"{REPO}: not whole on this machine, and the hub cannot be reached"):
            materialise(SOURCE, tmp_path / "third")
    assert not (tmp_path / "third").exists()
    assert hub.requests == []


def test_the_fast_transfer_that_fails_is_one_message(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files of the real hub come in chunks from a storage of its own, through a client of its own."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    hub.xet = True
    with pytest.raises(UserError, match=r"someone/tiny: the download broke off \(.*chunks") as caught:
        materialise(SOURCE, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    hub.xet = False
    assert materialise(SOURCE, tmp_path / "out")["files"][WEIGHTS] == sha256(hub.models[REPO].files[WEIGHTS])


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


def test_damage_on_this_machine_is_mended(hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file of the cache went bad; the model made of it earlier shares its bytes, so it is made anew as well."""
    facts = materialise(SOURCE, tmp_path / "out")
    (weights,) = (tmp_path / "cache").rglob(f"snapshots/*/{WEIGHTS}")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    hub.requests.clear()
    assert materialise(SOURCE, tmp_path / "out") == facts
    assert f"{REPO}: {WEIGHTS} is damaged" in caplog.text
    assert {request.path.rpartition("/")[2] for request in hub.content()} == {WEIGHTS}


def test_a_cache_without_links_is_checked_by_the_configuration(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_SYMLINKS", True)
    name = "en/c4.json.gz"
    assert list(documents(part_of_text(name), "all")) == TEXTS
    assert f"{name} is taken as it is" in caplog.text
    (file,) = (tmp_path / "cache").rglob(f"snapshots/*/{name}")
    file.write_bytes(b"damaged")
    right = sha256(hub.datasets["owner/text"].files[name])
    assert list(documents(part_of_text(name, sha256={name: right}), "all")) == TEXTS
    with pytest.raises(UserError, match=f"{name} came damaged twice; its checksum is not 0000"):
        list(documents(part_of_text(name, sha256={name: "0" * 64}), "all"))


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
    elsewhere = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert elsewhere
    assert not any(request.authorization for request in elsewhere), "another host saw the token"
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
