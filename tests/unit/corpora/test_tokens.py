"""Token windows: each protocol against its plain reading, the draws of the C4 loader, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from oaem.config.schema import Corpus, TokenSet
from oaem.corpora import tokens as tokens_room
from oaem.corpora.parts import SHARES
from oaem.corpora.sources import documents
from oaem.corpora.tokens import read_tokens, token_set, write_tokens
from oaem.errors import UserError
from oaem.models.load import load_tokenizer

WORDS = ["river", "mill", "paper", "water", "field", "stone", "bridge", "meadow", "village", "autumn", "children"]


@pytest.fixture(params=["tiny_llama", "tiny_qwen2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Llama's begins every text with a special token, Qwen2's does not."""
    return load_tokenizer(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents of 1 to 120 words, all different."""
    draws = random.Random(5)
    return [f"{i} " + " ".join(draws.choices(WORDS, k=draws.randint(1, 120))) for i in range(400)]


@pytest.fixture(scope="module")
def corpus(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Corpus(source="folder", path=str(folder), files=("a.jsonl",))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def occurs(window: list[int], ids: list[int]) -> bool:
    return any(ids[start : start + len(window)] == window for start in range(len(ids) - len(window) + 1))


def test_random_documents_cuts_inside_single_documents(tokenizer: Any, corpus: Corpus, texts: list[str]) -> None:
    spec = TokenSet(corpus="x", protocol="random_documents", window=100, windows=40)
    windows, protocol = token_set(spec, corpus, tokenizer, seed=42)
    assert windows.shape == (40, 100)
    assert windows.dtype is torch.int32
    every = [ids_of(tokenizer, text) for text in texts]
    sources = [[i for i, ids in enumerate(every) if occurs(window, ids)] for window in windows.tolist()]
    assert all(sources)
    assert len({source[0] for source in sources}) > 15, "windows come from many documents"
    starts = {i for i, w in enumerate(windows.tolist()) if w == every[sources[i][0]][:100]}
    assert len(starts) < 20, "and from anywhere inside them"
    assert protocol["seed"] == 42


def test_random_documents_draws_by_seed_and_part(tokenizer: Any, corpus: Corpus) -> None:
    spec = TokenSet(corpus="x", protocol="random_documents", window=60, windows=8)
    first = token_set(spec, corpus, tokenizer, 1)[0]
    assert torch.equal(first, token_set(spec, corpus, tokenizer, 1)[0])
    assert not torch.equal(first, token_set(spec, corpus, tokenizer, 2)[0])
    more = token_set(spec.model_copy(update={"part": "pv"}), corpus, tokenizer, 1)[0]
    assert not torch.equal(first, more)


def test_random_documents_is_uniform_over_long_enough_documents(tiny_qwen2: Path, tmp_path: Path) -> None:
    """Three documents are long enough, one is exactly a window, and many are not; drawn about equally often."""
    tokenizer = load_tokenizer(tiny_qwen2)
    lines = ["a" * 29, "b" * 29, "c" * 24, *("d" * 23 for _ in range(200))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    window = min(len(ids_of(tokenizer, line)) for line in lines[:3])
    assert len(ids_of(tokenizer, lines[3])) < window
    spec = TokenSet(corpus="x", protocol="random_documents", window=window, windows=900)
    corpus = Corpus(source="folder", path=str(tmp_path), files=("a.jsonl",))
    firsts = token_set(spec, corpus, tokenizer, 3)[0][:, 0].tolist()
    counts = [firsts.count(ids_of(tokenizer, line)[0]) for line in lines[:3]]
    assert sum(counts) == 900
    assert all(abs(count - 300) < 60 for count in counts)


def test_concatenated_is_the_documents_end_to_end(tokenizer: Any, corpus: Corpus, texts: list[str]) -> None:
    spec = TokenSet(corpus="x", protocol="concatenated", window=64, documents=50)
    windows, protocol = token_set(spec, corpus, tokenizer, 0)
    stream = [token for text in texts[:50] for token in ids_of(tokenizer, text)]
    assert windows.flatten().tolist() == stream[: len(stream) // 64 * 64]
    assert protocol["documents"] == 50
    assert protocol["seed"] is None


def test_concatenated_reads_no_more_than_it_needs(
    tiny_llama: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_room, "DOCUMENTS_A_BATCH", 4)
    read: list[str] = []
    real = tokens_room.documents
    monkeypatch.setattr(tokens_room, "documents", lambda c, p: (read.append(t) or t for t in real(c, p)))
    spec = TokenSet(corpus="x", protocol="concatenated", window=10, windows=3)
    assert token_set(spec, corpus, load_tokenizer(tiny_llama), 0)[0].shape == (3, 10)
    assert len(read) <= 8


def test_concatenated_shuffles_within_the_first_documents(tokenizer: Any, corpus: Corpus, texts: list[str]) -> None:
    spec = TokenSet(corpus="x", protocol="concatenated", window=1, documents=20, shuffle=True)
    one, two = (token_set(spec, corpus, tokenizer, seed)[0].flatten().tolist() for seed in (1, 2))
    plain = [token for text in texts[:20] for token in ids_of(tokenizer, text)]
    assert one != two
    assert sorted(one) == sorted(two) == sorted(plain)
    assert token_set(spec, corpus, tokenizer, 1)[1]["seed"] == 1


def test_joined_is_one_text(tokenizer: Any, corpus: Corpus, texts: list[str]) -> None:
    spec = TokenSet(corpus="x", protocol="joined", window=128, documents=60)
    windows, _ = token_set(spec, corpus, tokenizer, 0)
    ids = ids_of(tokenizer, "\n\n".join(texts[:60]))
    assert windows.flatten().tolist() == ids[: len(ids) // 128 * 128]
    specials = windows.flatten().tolist().count(tokenizer.bos_token_id)
    assert specials == (1 if ids_of(tokenizer, "a")[0] == tokenizer.bos_token_id else 0)


def test_joined_keeps_empty_rows(tiny_qwen2: Path, tmp_path: Path) -> None:
    """WikiText-2's rows are lines, many of them empty; the protocol joins them all."""
    tokenizer = load_tokenizer(tiny_qwen2)
    rows = ["", " = The mill = ", "", "The river rises. "]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    corpus = Corpus(source="folder", path=str(tmp_path), files=("a.jsonl",))
    windows, _ = token_set(TokenSet(corpus="x", protocol="joined", window=1), corpus, tokenizer, 0)
    assert tokenizer.decode(windows.flatten()) == "\n\n = The mill = \n\n\n\nThe river rises. "


def literal_c4(texts: list[str], tokenizer: Any, window: int, count: int) -> list[list[int]]:
    """The protocol as it is told, without any short cut."""
    random.seed(0)
    found: list[list[int]] = []
    while len(found) < count:
        ids: list[int] = []
        while len(ids) < window:
            ids = ids_of(tokenizer, texts[random.randint(0, len(texts) - 1)])
        start = 0 if len(ids) == window else random.randint(0, len(ids) - window - 1)
        found.append(ids[start : start + window])
    return found


@pytest.mark.parametrize("window", [90, 137])
def test_c4_draws_as_the_fields_loader(tokenizer: Any, corpus: Corpus, texts: list[str], window: int) -> None:
    windows, _ = token_set(TokenSet(corpus="x", protocol="c4", window=window), corpus, tokenizer, 99)
    assert windows.tolist() == literal_c4(texts, tokenizer, window, 256)


def test_c4_takes_a_document_of_one_window_whole(tiny_qwen2: Path, corpus: Corpus, texts: list[str]) -> None:
    tokenizer = load_tokenizer(tiny_qwen2)
    longest = max(len(ids_of(tokenizer, text)) for text in texts)
    spec = TokenSet(corpus="x", protocol="c4", window=longest, windows=3)
    windows, _ = token_set(spec, corpus, tokenizer, 0)
    assert windows.tolist() == literal_c4(texts, tokenizer, longest, 3)


def test_c4_new_joins_the_first_documents(
    tokenizer: Any, corpus: Corpus, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_room, "C4_NEW_DOCUMENTS", 300)
    ids = ids_of(tokenizer, " ".join(texts[:300]))
    for window in (8, 64):
        windows, protocol = token_set(TokenSet(corpus="x", protocol="c4_new", window=window), corpus, tokenizer, 0)
        assert windows.flatten().tolist() == ids[: min(256, len(ids) // window) * window]
        assert protocol["documents"] == 300


@pytest.mark.parametrize("protocol", ["concatenated", "joined", "c4_new"])
def test_too_little_text(tokenizer: Any, corpus: Corpus, protocol: str) -> None:
    spec = TokenSet(corpus="mine", part="pv", protocol=protocol, window=100, windows=100_000, documents=7)
    with pytest.raises(
        UserError, match=r"corpus mine, part pv: 7 documents hold \d+ tokens, \d+ windows of 100; 100000"
    ):
        token_set(spec, corpus, tokenizer, 0)
    with pytest.raises(UserError, match="0 windows of 1000000; 1 are asked for"):
        token_set(spec.model_copy(update={"window": 10**6, "windows": None}), corpus, tokenizer, 0)


@pytest.mark.parametrize("window", [1500, 10**6])
@pytest.mark.parametrize("protocol", ["random_documents", "c4"])
def test_no_document_is_long_enough(tiny_llama: Path, tmp_path: Path, protocol: str, window: int) -> None:
    """Also when their bytes leave it open, so that only tokenising tells."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "river " * 300}) + "\n" for _ in range(5)))
    corpus = Corpus(source="folder", path=str(tmp_path), files=("a.jsonl",))
    spec = TokenSet(corpus="mine", protocol=protocol, window=window, windows=4)
    with pytest.raises(UserError, match=f"none of its 5 documents has {window} tokens"):
        token_set(spec, corpus, load_tokenizer(tiny_llama), 0)


def test_random_documents_needs_a_number(tokenizer: Any, corpus: Corpus) -> None:
    with pytest.raises(UserError, match="needs `windows`"):
        token_set(TokenSet(corpus="x", protocol="random_documents", window=8), corpus, tokenizer, 0)


def test_tokens_round_trip(tmp_path: Path) -> None:
    tokens, protocol = (
        torch.arange(12, dtype=torch.int32).view(3, 4),
        {"protocol": "joined", "window": 4, "name": "café"},
    )
    write_tokens(tmp_path / "t.safetensors", tokens, protocol)
    found, told = read_tokens(tmp_path / "t.safetensors")
    assert torch.equal(found, tokens)
    assert found.dtype is torch.int32
    assert told == protocol


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"", None])
def test_damaged_tokens(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "t.safetensors"
    if damage is not None:
        write_tokens(path, torch.zeros(2, 2, dtype=torch.int32), {})
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"t\.safetensors: not a file of tokens"):
        read_tokens(path)


def test_token_sets_of_real_text_share_no_document(tiny_qwen2: Path) -> None:
    """The proof that nothing scored was calibrated or tuned on, read back from the tokens themselves."""
    tokenizer, corpus = load_tokenizer(tiny_qwen2), Corpus(source="embedded", name="wikihow")
    cut = {}
    for part in SHARES:
        spec = TokenSet(corpus="wikihow", part=part, protocol="joined", window=256, windows=8, documents=60)
        cut[part] = tokenizer.decode(token_set(spec, corpus, tokenizer, 0)[0].flatten()).split("\n\n")[:-1]
    whole = {part: set(documents(corpus, part)) for part in SHARES}
    for part, found in cut.items():
        assert len(found) > 3
        assert set(found) <= whole[part]
        assert not any(set(found) & whole[other] for other in SHARES.keys() - {part})


def test_bos_takes_the_place_of_every_windows_first_token(tokenizer: Any, corpus: Corpus) -> None:
    spec = TokenSet(corpus="x", protocol="joined", window=50)
    plain, without = token_set(spec, corpus, tokenizer, seed=42)
    if tokenizer.bos_token_id is None:
        with pytest.raises(UserError, match="no BOS token"):
            token_set(spec, corpus, tokenizer, seed=42, bos_first=True)
        return
    windows, protocol = token_set(spec, corpus, tokenizer, seed=42, bos_first=True)
    assert windows[:, 0].tolist() == [tokenizer.bos_token_id] * len(windows)
    assert torch.equal(windows[:, 1:], plain[:, 1:])
    assert protocol["first_token"] == tokenizer.bos_token_id
    assert "first_token" not in without
    assert protocol["sha256"] != without["sha256"]
