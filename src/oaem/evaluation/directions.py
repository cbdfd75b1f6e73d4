"""Where a layer's error lies: in few directions of its inputs, in few rows, or everywhere.

Hessians are those of the unquantised model on the run's calibration tokens, so that two runs are measured alike. The
blocks of a run saw the outputs of its quantised blocks instead; what they make up for counts as error here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from oaem.calibration.artefacts import QuantizedState, dense_weight
from oaem.calibration.checked import load_for_calibration
from oaem.calibration.observation import BlockWalk
from oaem.config.grid import Run
from oaem.evaluation.metrics import Metric
from oaem.models.capture import block_arguments
from oaem.models.families import family_of
from oaem.models.load import block_count, embed_tokens, load_config
from oaem.runtime.progress import Progress

FEW = 0.01  # The share of directions, or of rows, that counts as few.


def error_directions(weight: Tensor, quantized: Tensor, hessian: Tensor) -> dict[str, float]:
    """How the output error tr(D H D^T), D = W^ - W [out, in], is spread over H's eigenvectors and over rows.

    hessian: [in, in]. Gives `relative_error` (of tr(W H W^T)); the same within the first hundredth of eigenvectors,
    largest eigenvalues first, and within the rest (`…_few_directions`, `…_other_directions`); the shares of the
    error in the first hundredth of eigenvectors and in the worst hundredth of rows (`error_share_…`); and the share of
    the inputs' energy in the very first eigenvector (`input_share_first_direction`). All in float64.
    """
    return by_direction(weight, quantized, *_decomposed(hessian))


def _decomposed(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [in], the largest first, and eigenvectors in columns [in, in], in float64."""
    values, vectors = torch.linalg.eigh(hessian.double())
    return values.clamp(min=0).flip(0), vectors.flip(1)


def by_direction(weight: Tensor, quantized: Tensor, values: Tensor, vectors: Tensor) -> dict[str, float]:
    """`error_directions`, of a Hessian decomposed: eigenvalues [in], the largest first, eigenvectors [in, in]."""
    error = ((quantized - weight).double() @ vectors).square() * values
    energy = ((weight.double() @ vectors).square() * values).sum(0)
    directions, rows = (max(1, round(FEW * size)) for size in (len(values), len(weight)))
    by_direction, by_row = error.sum(0), error.sum(1).sort(descending=True).values
    total = by_direction.sum()
    return {
        "relative_error": _share(total, energy.sum()),
        "relative_error_few_directions": _share(by_direction[:directions].sum(), energy[:directions].sum()),
        "relative_error_other_directions": _share(by_direction[directions:].sum(), energy[directions:].sum()),
        "error_share_few_directions": _share(by_direction[:directions].sum(), total),
        "error_share_few_rows": _share(by_row[:rows].sum(), total),
        "input_share_first_direction": _share(values[0], values.sum()),
    }


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else 0.0


@torch.no_grad()
def measure_directions(
    folder: Path, runs: Mapping[Run, QuantizedState], tokens: Tensor, dtype: torch.dtype, device: str
) -> list[Metric]:
    """`error_directions` of every quantised linear of every run: the dataset says which linear, the label which block.

    folder: the unquantised model. tokens: [sequences, window] integer, the runs' calibration tokens.
    """
    prefix = family_of(load_config(folder)).blocks
    facts = {"sequences": len(tokens), "window": tokens.shape[1], "few": FEW}
    metrics = []
    for index, name, weight, *directions in unquantised_linears(folder, tokens, dtype, device):
        for run, state in runs.items():
            quantized = dense_weight(state.linears[f"{prefix}.{index}.{name}"], device)
            for metric, value in by_direction(weight, quantized, *directions).items():
                row = Metric(run.model, "directions", name, metric, value, run, label=str(index), protocol=facts)
                metrics.append(row)
    return metrics


def unquantised_linears(
    folder: Path, tokens: Tensor, dtype: torch.dtype, device: str
) -> Iterator[tuple[int, str, Tensor, Tensor, Tensor]]:
    """Block, name and weight [out, in] in float32 of each linear that quantisation replaces; its Hessian, decomposed.

    Linears that share their input share one Hessian, the same tensor, which is decomposed once.
    """
    groups, count = family_of(load_config(folder)).sequential_groups, block_count(folder)
    progress = Progress(f"{folder.parent.name} directions", count, every=20.0)
    hidden = embed_tokens(folder, tokens, dtype, device)
    for index in range(count):
        block = load_for_calibration(folder, index, dtype, device)
        walk = BlockWalk(block, hidden, block_arguments(folder, index, hidden.shape[1], dtype, device), groups, False)
        for number, group in enumerate(groups):
            hessians, _ = walk.observe(number)
            distinct = {id(hessian): hessian for hessian in hessians.values()}
            decomposed = {key: _decomposed(hessian) for key, hessian in distinct.items()}
            for name in group:
                weight = block.get_parameter(f"{name}.weight").detach().float()
                yield index, name, weight, *decomposed[id(hessians[name])]
        hidden = walk.outputs()
        progress.step()
