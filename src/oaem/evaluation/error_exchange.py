"""What of two runs' errors carries the difference between them: those in few directions, those in all others, or size.

Directions and sizes are those of `directions`: eigenvectors of the unquantised model's Hessians on the runs'
calibration tokens, and relative errors by them. A part of an error that makes up for damage of earlier layers counts
like the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from oaem.calibration.artefacts import QuantizedState, dense_weight, to_dense
from oaem.config.grid import Run
from oaem.evaluation.directions import FEW, by_direction, unquantised_linears
from oaem.evaluation.domains import measure_domains
from oaem.evaluation.exchange import exchanged
from oaem.evaluation.metrics import Metric
from oaem.models.families import family_of
from oaem.models.load import load_config, load_model
from oaem.runtime.progress import Progress

FEW_DIRECTIONS, OTHER_DIRECTIONS, SIZE = PARTS = ("few directions", "other directions", "size")
UNQUANTISED = "unquantised"  # the giver of weights without error
Weights = Callable[[str], Tensor]  # [out, in] in float32, by full name


@dataclass(frozen=True)
class LayerErrors:
    """Of a linear: its first hundredth of directions, columns [in, k] in float32; relative errors by initialisation."""

    few: Tensor
    sizes: Mapping[str, float]


def exchanged_in(own: Tensor, given: Tensor, directions: Tensor) -> Tensor:
    """A weight [out, in] that acts as `given` on inputs within the span of directions [in, k], as `own` on others.

    directions: orthonormal columns, float32 as both weights.
    """
    return own + ((given - own) @ directions) @ directions.T


def resized(own: Tensor, original: Tensor, size: float, wanted: float) -> Tensor:
    """`own` [out, in] with its error of relative size `wanted` instead of `size`, along `own` - `original`.

    A weight without error stays as it is.
    """
    return original + (math.sqrt(wanted / size) if size > 0 else 1.0) * (own - original)


@torch.no_grad()
def layer_errors(
    folder: Path, states: Mapping[Run, QuantizedState], tokens: Tensor, dtype: torch.dtype, device: str
) -> dict[str, LayerErrors]:
    """By the full name of each quantised weight. folder: the unquantised model. tokens: [sequences, window] integer."""
    prefix = family_of(load_config(folder)).blocks
    found = {}
    for index, name, weight, values, vectors in unquantised_linears(folder, tokens, dtype, device):
        full = f"{prefix}.{index}.{name}"
        sizes = {
            run.init: by_direction(weight, dense_weight(state.linears[full], device), values, vectors)["relative_error"]
            for run, state in states.items()
        }
        found[f"{full}.weight"] = LayerErrors(vectors[:, : max(1, round(FEW * len(values)))].float(), sizes)
    return found


class _Replaced(Mapping[str, Tensor]):
    """Weights by name with a part of their error replaced, each made when it is asked for.

    weights: by name, its own, the giver's and the unquantised model's. sizes: the initialisations of the first two.
    """

    def __init__(
        self, part: str, weights: Sequence[Weights], layers: Mapping[str, LayerErrors], sizes: tuple[str, str]
    ) -> None:
        self._part, self._weights, self._layers, self._sizes = part, weights, layers, sizes

    def __getitem__(self, name: str) -> Tensor:
        own, given, original = (weight(name) for weight in self._weights)
        layer = self._layers[name]
        if self._part == SIZE:
            return resized(own, original, *(layer.sizes[init] for init in self._sizes))
        return exchanged_in(*((own, given) if self._part == FEW_DIRECTIONS else (given, own)), layer.few)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


@torch.no_grad()
def measure_error_exchange(
    folder: Path,
    states: Mapping[Run, QuantizedState],
    layers: Mapping[str, LayerErrors],
    domains: Mapping[str, Mapping[str, str]],
    tokens: Sequence[Path],
    batch_size: int,
    dtype: torch.dtype,
    device: str,
) -> list[Metric]:
    """Perplexity on every domain of either run's model with a part of the error of all its linears replaced.

    folder: the unquantised model. layers: as `layer_errors` gives. The rows are like those of `measure_exchange`: the
    `part` is one of PARTS; it comes `from` the other run's initialisation, or, taken away, from UNQUANTISED.
    """
    original = {name: tensor.detach() for name, tensor in load_model(folder, torch.float32, device).named_parameters()}
    weights = {run.init: _dense(state, device) for run, state in states.items()} | {UNQUANTISED: original.__getitem__}
    progress = Progress("error exchange", len(states) * (2 * len(PARTS) - 1), every=20.0)
    metrics = []
    for run, state in states.items():
        model = to_dense(folder, state, dtype, device)
        blank = Metric(run.model, "exchange", "", "perplexity", float("nan"), run)
        (partner,) = {each.init for each in states} - {run.init}
        for giver, parts in ((partner, PARTS), (UNQUANTISED, (FEW_DIRECTIONS, OTHER_DIRECTIONS))):
            used = [weights[each] for each in (run.init, giver, UNQUANTISED)]
            for part in parts:
                with exchanged(model, _Replaced(part, used, layers, (run.init, giver)), layers):
                    found = measure_domains(model, blank, domains, tokens, batch_size, device)
                facts = {"part": part, "from": giver, "few": FEW}
                metrics += [replace(row, protocol={**row.protocol, "exchanged": facts}) for row in found]
                progress.step()
    return metrics


def _dense(state: QuantizedState, device: str) -> Weights:
    return lambda name: dense_weight(state.linears[name.removesuffix(".weight")], device)
