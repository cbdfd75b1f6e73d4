"""Perplexity of one model on every text domain, as measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oaem.corpora.tokens import read_tokens
from oaem.errors import UserError
from oaem.evaluation.metrics import Metric
from oaem.evaluation.perplexity import perplexity
from oaem.runtime.progress import Progress
from oaem.runtime.provenance import device_name


def measure_domains(
    model: Any,
    blank: Metric,
    domains: Mapping[str, Mapping[str, str]],
    tokens: Sequence[Path],
    batch_size: int,
    device: str,
) -> list[Metric]:
    """One measurement a domain, each `blank` but for what was measured on which text.

    domains: role and label by dataset. tokens: a file `eval-{dataset}.safetensors` for each, in any order; a dataset
    is told by the name of its file alone, never by its place in a list.
    """
    files = {path.stem.removeprefix("eval-"): path for path in tokens}
    if set(files) != set(domains):
        raise UserError(f"perplexity: token files for {sorted(files)}, but the domains are {sorted(domains)}.")
    sets = {dataset: read_tokens(path) for dataset, path in files.items()}
    progress = Progress(f"{blank.model} {blank.stage} perplexity", sum(len(windows) for windows, _ in sets.values()))
    metrics = []
    for dataset, domain in domains.items():
        windows, protocol = sets[dataset]
        result = perplexity(model, windows, batch_size, device, progress)
        facts = {**protocol, "dtype": str(model.dtype), "device": device_name(device)}
        found = {"value": result.value, "stderr": result.stderr, "n": result.windows, "protocol": facts}
        metrics.append(blank.on(dataset, domain["role"], domain["label"], **found))
    return metrics
