"""Windows of tokens cut from a corpus, by the protocols of calibration, PV-tuning and perplexity (section 4.1)."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from oaem.config.schema import Corpus, TokenSet
from oaem.corpora.sources import documents
from oaem.errors import UserError
from oaem.runtime.atomic import atomic_path
from oaem.runtime.seeds import generator

DOCUMENTS_A_BATCH = 256
C4_WINDOWS, C4_NEW_DOCUMENTS = 256, 1100

Tokenize = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class Cut:
    """Windows [n, window] of int32 tokens, and what they came from."""

    windows: torch.Tensor
    documents: int
    tokens: int


def token_set(
    spec: TokenSet, corpus: Corpus, tokenizer: Any, seed: int, *, bos_first: bool = False
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Tokens int32 [n, window] cut as `spec` says, and the protocol that names everything they depend on.

    Every protocol lets the tokenizer add its own special tokens to each text it is given, as the paper's does. With
    `bos_first` its BOS token takes the place of every window's first, which no perplexity counts: see `Family`.
    UserError if the corpus holds too little text, or the tokenizer has no such token.
    """
    texts = documents(corpus, spec.part)
    if spec.documents is not None:
        texts = islice(texts, spec.documents)
    cut = _PROTOCOLS[spec.protocol](spec, texts, _batch_tokenizer(tokenizer), seed)
    leading = {}
    if bos_first:
        leading = {"first_token": _bos(tokenizer)}
        cut.windows[:, 0] = leading["first_token"]
    seeded = spec.protocol == "random_documents" or (spec.protocol == "concatenated" and spec.shuffle)
    protocol = {
        **spec.model_dump(exclude={"corpus", "windows", "documents"}),
        "corpus": corpus.model_dump(mode="json", exclude_defaults=True),
        "seed": seed if seeded else None,
        "windows": len(cut.windows),
        "documents": cut.documents,
        "tokens_read": cut.tokens,
        "tokenizer": _fingerprint(tokenizer),
        **leading,
        "sha256": _checksum(cut.windows),
    }
    return cut.windows, protocol


def write_tokens(path: Path | str, tokens: torch.Tensor, protocol: dict[str, Any]) -> None:
    """Write tokens int32 [n, window] with their protocol as a safetensors file, atomically."""
    with atomic_path(path) as temporary:
        save_file(
            {"tokens": tokens.contiguous()}, temporary, metadata={"protocol": json.dumps(protocol, sort_keys=True)}
        )


def read_tokens(path: Path | str) -> tuple[torch.Tensor, dict[str, Any]]:
    """Tokens int32 [n, window] and their protocol; UserError if the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            protocol = json.loads(stored.metadata()["protocol"])
            tokens = stored.get_tensor("tokens")
            if protocol.get("sha256") not in (None, _checksum(tokens)):
                raise ValueError("its checksum does not agree")
            return tokens, protocol
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a file of tokens ({error}); delete it and run the same command again.") from None


def _checksum(tokens: torch.Tensor) -> str:
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def _random_documents(spec: TokenSet, texts: Iterable[str], tokenize: Tokenize, seed: int) -> Cut:
    """Random windows of random documents of at least `window` tokens; documents are drawn with replacement."""
    wanted = _require_windows(spec)
    every = list(texts)
    candidates = [text for text in every if _may_hold(text, spec.window)]
    draws = generator(seed, "tokens", spec.protocol, spec.corpus, spec.part)
    windows: list[list[int]] = []
    read = 0
    while len(windows) < wanted:
        if not candidates:
            raise UserError(_no_long_document(spec, len(every)))
        picks = torch.randint(len(candidates), (wanted - len(windows),), generator=draws).tolist()
        short: set[int] = set()
        for pick, ids in zip(picks, tokenize([candidates[pick] for pick in picks]), strict=True):
            read += len(ids)
            if len(ids) < spec.window:
                short.add(pick)
                continue
            start = int(torch.randint(len(ids) - spec.window + 1, (), generator=draws))
            windows.append(ids[start : start + spec.window])
        # Leaving out what was found too short changes no probability: it would be drawn only to be refused again.
        candidates = [text for index, text in enumerate(candidates) if index not in short]
    return Cut(torch.tensor(windows, dtype=torch.int32), len(every), read)


def _concatenated(spec: TokenSet, texts: Iterable[str], tokenize: Tokenize, seed: int) -> Cut:
    """Documents tokenised one by one, put end to end and cut; no more are read than the windows need."""
    if spec.shuffle:
        every = list(texts)
        order = torch.randperm(len(every), generator=generator(seed, "tokens", spec.protocol, spec.corpus, spec.part))
        texts = (every[index] for index in order.tolist())
    needed = None if spec.windows is None else spec.windows * spec.window
    stream: list[int] = []
    read = 0
    for batch in _batches(texts):
        for ids in tokenize(batch):
            if needed is None or len(stream) < needed:
                stream += ids
                read += 1
        if needed is not None and len(stream) >= needed:
            break
    return _cut(spec, stream, read, spec.windows)


def _joined(spec: TokenSet, texts: Iterable[str], tokenize: Tokenize, seed: int) -> Cut:
    """All documents joined by the separator and tokenised as one text: the WikiText-2 protocol."""
    every = list(texts)
    return _cut(spec, tokenize([spec.separator.join(every)])[0], len(every), spec.windows)


def _c4(spec: TokenSet, texts: Iterable[str], tokenize: Tokenize, seed: int) -> Cut:
    """256 random windows: the draws of Python's generator seeded with 0, in the order of the field's C4 loader."""
    every = list(texts)
    if not any(_may_hold(text, spec.window) for text in every):
        raise UserError(_no_long_document(spec, len(every)))
    # Not for security: the published protocol is this very stream.
    draws = random.Random(0)  # noqa: S311
    known: dict[int, list[int]] = {}

    def tokens_of(index: int) -> list[int]:
        if index not in known:
            known[index] = tokenize([every[index]])[0] if _may_hold(every[index], spec.window) else []
            if len(known) == len(every) and all(len(ids) < spec.window for ids in known.values()):
                raise UserError(_no_long_document(spec, len(every)))
        return known[index]

    windows: list[list[int]] = []
    while len(windows) < (spec.windows or C4_WINDOWS):
        ids = tokens_of(draws.randint(0, len(every) - 1))
        if len(ids) < spec.window:
            continue
        # A document of exactly one window is taken whole, without a second draw.
        start = draws.randint(0, len(ids) - spec.window - 1) if len(ids) > spec.window else 0
        windows.append(ids[start : start + spec.window])
    return Cut(torch.tensor(windows, dtype=torch.int32), len(every), sum(map(len, known.values())))


def _c4_new(spec: TokenSet, texts: Iterable[str], tokenize: Tokenize, seed: int) -> Cut:
    """The first 1,100 documents joined by a space and tokenised as one text; at most 256 windows."""
    first = list(islice(texts, spec.documents or C4_NEW_DOCUMENTS))
    ids = tokenize([" ".join(first)])[0]
    return _cut(spec, ids[: C4_WINDOWS * spec.window], len(first), spec.windows)


_PROTOCOLS: dict[str, Callable[[TokenSet, Iterable[str], Tokenize, int], Cut]] = {
    "random_documents": _random_documents,
    "concatenated": _concatenated,
    "joined": _joined,
    "c4": _c4,
    "c4_new": _c4_new,
}


def _cut(spec: TokenSet, stream: list[int], read: int, windows: int | None) -> Cut:
    """Disjoint windows of `stream`, the last partial one dropped; UserError if fewer than `windows`, or none."""
    available = len(stream) // spec.window
    wanted = available if windows is None else windows
    if available < max(wanted, 1):
        raise UserError(
            f"corpus {spec.corpus}, part {spec.part}: {read} documents hold {len(stream)} tokens, {available} windows "
            f"of {spec.window}; {max(wanted, 1)} are asked for. Ask for fewer or shorter windows, or a larger corpus."
        )
    kept = torch.tensor(stream[: wanted * spec.window], dtype=torch.int32)
    return Cut(kept.view(wanted, spec.window), read, len(stream))


def _bos(tokenizer: Any) -> int:
    if tokenizer.bos_token_id is None:
        raise UserError(
            "the tokenizer has no BOS token, and this family's models need one at the start of every window: the "
            "tokenizer is not the model's own, or its tokenizer_config.json is damaged. Get the model's files anew."
        )
    return int(tokenizer.bos_token_id)


def _batch_tokenizer(tokenizer: Any) -> Tokenize:
    def tokenize(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, return_attention_mask=False, truncation=False, verbose=False)["input_ids"]

    return tokenize


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while batch := list(islice(rest, DOCUMENTS_A_BATCH)):
        yield batch


def _may_hold(text: str, window: int) -> bool:
    """Whether `text` can have `window` tokens: a token is at least a byte, but for a few special ones at the ends."""
    return len(text) >= window - 8 or len(text.encode("utf-8", "surrogatepass")) >= window - 8


def _require_windows(spec: TokenSet) -> int:
    if spec.windows is None:
        raise UserError(f"corpus {spec.corpus}: the protocol {spec.protocol} needs `windows`, the number to draw.")
    return spec.windows


def _no_long_document(spec: TokenSet, count: int) -> str:
    return (
        f"corpus {spec.corpus}, part {spec.part}: none of its {count} documents has {spec.window} tokens, which the "
        f"protocol {spec.protocol} needs. Choose a shorter window, or the protocol concatenated."
    )


def _fingerprint(tokenizer: Any) -> str:
    """A hash of everything the tokenizer does to a text."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]
