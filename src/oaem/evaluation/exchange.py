"""Which layers carry the difference between two runs before PV-tuning: layers of one in the model of the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from oaem.config.grid import Run
from oaem.evaluation.domains import measure_domains
from oaem.evaluation.metrics import Metric
from oaem.models.families import Family, linear_names
from oaem.runtime.progress import Progress

NOTHING = "nothing"  # The part that leaves a model as it is.


def parts_of(linears: Iterable[str], tensors: Iterable[str], blocks: str) -> dict[str, list[str]]:
    """What is exchanged, by name: nothing, each kind of linear in all blocks, each block with all it holds.

    linears: full names of quantised linears, such as model.layers.7.mlp.up_proj. tensors: full names of the other
    tensors of the blocks, which block tuning changes too. blocks: where the blocks are, such as model.layers.
    """
    weights = [f"{name}.weight" for name in linears]
    found: dict[str, list[str]] = {NOTHING: []}
    for name in weights:
        _, kind = _place(name, blocks)
        found.setdefault(kind.removesuffix(".weight"), []).append(name)
    for name in (*weights, *tensors):
        index, _ = _place(name, blocks)
        found.setdefault(f"block {index}", []).append(name)
    return found


def parts_in(model: nn.Module, family: Family) -> dict[str, list[str]]:
    """The parts of a dense model of that family, of which quantisation replaces the linears."""
    inside = [name for name, _ in model.named_parameters() if name.startswith(f"{family.blocks}.")]
    names = sorted(inside, key=lambda name: _place(name, family.blocks))
    kinds = {f"{kind}.weight" for kind in linear_names(family)}
    weights = [name for name in names if _place(name, family.blocks)[1] in kinds]
    others = [name for name in names if name not in set(weights)]
    return parts_of([name.removesuffix(".weight") for name in weights], others, family.blocks)


def _place(name: str, blocks: str) -> tuple[int, str]:
    index, _, rest = name.removeprefix(f"{blocks}.").partition(".")
    return int(index), rest


@contextmanager
def exchanged(model: nn.Module, other: Mapping[str, Tensor], names: Iterable[str]) -> Iterator[None]:
    """`model` with the tensors called `names` from `other`; its own are put back at the end."""
    own = dict(model.named_parameters())
    kept = {name: own[name].detach().clone() for name in names}
    with torch.no_grad():
        for name in kept:
            own[name].copy_(other[name])
        try:
            yield
        finally:
            for name, tensor in kept.items():
                own[name].copy_(tensor)


def measure_exchange(
    models: Mapping[Run, nn.Module],
    parts: Mapping[str, Sequence[str]],
    domains: Mapping[str, Mapping[str, str]],
    tokens: Sequence[Path],
    batch_size: int,
    device: str,
) -> list[Metric]:
    """Perplexity on every domain of either model with each part from the other one.

    models: the dense models of two runs. A measurement belongs to the run whose model it is; its protocol says
    under `exchanged` which `part` came `from` which initialisation.
    """
    progress = Progress("exchange", len(models) * len(parts), every=20.0)
    metrics = []
    for run, model in models.items():
        (giver,) = set(models) - {run}
        given = dict(models[giver].named_parameters())
        blank = Metric(run.model, "exchange", "", "perplexity", float("nan"), run)
        for part, names in parts.items():
            with exchanged(model, given, names):
                found = measure_domains(model, blank, domains, tokens, batch_size, device)
            facts = {"part": part, "from": giver.init}
            metrics += [replace(row, protocol={**row.protocol, "exchanged": facts}) for row in found]
            progress.step()
    return metrics
