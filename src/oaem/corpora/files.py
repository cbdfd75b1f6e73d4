"""Documents out of files: .json.gz, .jsonl, .json (one a line), .parquet (one a row) and .txt (the whole file)."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from oaem.errors import UserError

ROWS_A_BATCH = 4096
SUFFIXES = (".json.gz", ".jsonl.gz", ".jsonl", ".json", ".parquet", ".txt")


def read_documents(path: Path, field: str) -> Iterator[str]:
    """The documents in `path` in order, empty ones included; UserError naming file and line where one is damaged."""
    name = path.name
    if name.endswith(".parquet"):
        yield from _parquet(path, field)
    elif name.endswith(".txt"):
        yield _whole(path)
    elif name.endswith(SUFFIXES):
        for where, row in read_json_lines(path):
            yield _text(row, field, where)
    else:
        raise UserError(f"{path}: unknown kind of file; expected one of {', '.join(SUFFIXES)}.")


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line, value) of every line that is not blank; UserError where a line or the compression is damaged."""
    line = 0
    try:
        with _open(path) as stream:
            for line, raw in enumerate(stream, start=1):
                if raw.strip():
                    yield f"{path}, line {line}", json.loads(raw)
    except ValueError as error:
        raise UserError(f"{path}, line {line}: not a JSON object ({error}); fetch or write the file again.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}, after line {line}: cannot be read on ({error}); fetch the file again.") from None


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path) if path.name.endswith(".gz") else path.open("rb")


def _whole(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}).") from None


def _parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        table = pq.ParquetFile(path)
        if field not in table.schema_arrow.names:
            raise UserError(
                f"{path}: has no column {field!r}, only {', '.join(table.schema_arrow.names)}; set `field`."
            )
        for batch in table.iter_batches(batch_size=ROWS_A_BATCH, columns=[field]):
            for text in batch.column(0).to_pylist():
                row += 1
                yield _text({field: text}, field, f"{path}, row {row}")
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}, after row {row}: not a whole parquet file ({error}); fetch it again.") from None


def _text(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict) or field not in row:
        found = f"only {', '.join(row)}" if isinstance(row, dict) else f"it is a {type(row).__name__}"
        raise UserError(f"{where}: has no key {field!r} ({found}); set `field` to the one that holds the text.")
    if not isinstance(row[field], str):
        raise UserError(f"{where}: {field!r} holds a {type(row[field]).__name__}, expected text.")
    return row[field]
