"""The documents of a named corpus, wherever it lies, restricted to the part that serves one purpose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from oaem.config.schema import Corpus
from oaem.corpora.embedded import embedded_documents
from oaem.corpora.files import read_documents
from oaem.corpora.parts import part_of
from oaem.errors import UserError
from oaem.models.hub_files import fetch_file, require_checksums
from oaem.runtime.provenance import checksum


def documents(corpus: Corpus, part: str) -> Iterator[str]:
    """The documents of `corpus` in its own order that belong to `part`; `all` takes every one.

    Embedded texts hold each document once; files are taken as they are, with their empty and repeated rows, because
    the paper's protocols are. UserError if the corpus cannot be had or is damaged.
    """
    for text in _every_document(corpus):
        if part == "all" or part_of(text) == part:
            yield text


def corpus_files(corpus: Corpus) -> Iterator[Path]:
    """The local files of a hub or folder corpus, in order, each fetched and checked when its turn comes."""
    for file in corpus.files:
        if corpus.source == "hub":
            expected = corpus.sha256.get(file)
            yield fetch_file(str(corpus.repo), file, corpus.revision, "dataset", expected=expected)[0]
            continue
        path = Path(str(corpus.path)).expanduser() / file
        if not path.is_file():
            raise UserError(f"{path}: no such file; check `path` and `files` of the corpus.")
        if file in corpus.sha256:
            require_checksums({file: checksum(path)}, {file: corpus.sha256[file]}, str(path.parent))
        yield path


def _every_document(corpus: Corpus) -> Iterator[str]:
    if corpus.source == "embedded":
        yield from embedded_documents(str(corpus.name))
        return
    for path in corpus_files(corpus):
        yield from read_documents(path, corpus.field)
