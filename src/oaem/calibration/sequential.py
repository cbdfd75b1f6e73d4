"""A run quantised block by block (method of sections 3.1 and 4), on inputs of either kind (`quantization.inputs`).

**sequential**, the paper's: quantise a block, recompute its outputs, go on to the next. Activations are handed from
block to block through files, so that a run may be cut into jobs of any number of blocks, and a killed job resumes at
the block it was in. With `block_tuning.targets: unquantized_model` a block's tuning alone looks at the calibration
stream: its targets for every group are what the unquantised block makes of the unquantised model's inputs, so that it
is asked to make up for errors of the blocks before it, which its inputs hold.

**original**: a block's inputs are those of the unquantised model, read from the calibration stream. Its first
sequential group sees exactly what the unquantised model gives it. Later groups see those same block inputs after the
block's current state, with the groups before them quantised and tuned, so that they make up for errors inside the
block; no block can make up for errors of the blocks before it. The targets of block tuning are the unquantised block's
outputs for every group: to the bit the inputs of the next block in the stream.

Every random stream derives from (seed, block, linear, stage): the result is the same to the bit however the run was
cut and, on original inputs, in whatever order its blocks were done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oaem.calibration.activations import ActivationWriter, read_activations
from oaem.calibration.artefacts import QuantizedState, load_block_state, state_of, write_block
from oaem.calibration.checked import load_for_calibration, require_finite, require_finite_weights
from oaem.calibration.observation import BlockWalk, batch_size
from oaem.calibration.reports import block_path, block_report
from oaem.calibration.stream import Stream
from oaem.config.grid import Run
from oaem.config.settings import BlockTuningSettings, LayerSettings
from oaem.errors import UserError
from oaem.models.capture import block_arguments, run_block
from oaem.models.families import Family, family_of
from oaem.models.load import block_count, embed_tokens, linear_shapes, load_config
from oaem.models.precision import compute_dtype
from oaem.quantization.block_tuning import tune_block
from oaem.quantization.initialisations import ENTRY_POINTS
from oaem.quantization.layer import LayerResult, quantize_layer
from oaem.quantization.linear import QuantizedLinear
from oaem.quantization.weight import AdditiveWeight
from oaem.runtime.atomic import read_json
from oaem.runtime.progress import PhaseClock, Progress
from oaem.runtime.provenance import checksum, collect, fingerprint, plugin_version
from oaem.runtime.seeds import derive

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SequentialJob:
    """What one job of a run is told; tensors and files come separately."""

    run: Run
    model_folder: Path
    family: Family
    layer: LayerSettings
    tuning: BlockTuningSettings
    dtype: torch.dtype
    device: str
    fingerprint: str
    made_by: Mapping[str, Any] = field(default_factory=dict)
    stream: Stream | None = None

    @property
    def on_original_inputs(self) -> bool:
        """Whether a block's inputs come from the stream; if not, a stream that is there is for targets alone."""
        return self.stream is not None and self.tuning.targets == "block"


def prepare(
    run: Run,
    settings: Mapping[str, Any],
    manifest: Path,
    tokens: Path,
    device: str,
    code: str,
    stream: Stream | None = None,
) -> SequentialJob:
    """A run's job from the workflow's parameters; checks that the geometry fits the model before anything is computed.

    The fingerprint covers all that the numbers depend on: run, settings, model, tokens, the stream's contents, code and
    kind of device.
    """
    folder = manifest.parent / "hf"
    for name, (_, width) in linear_shapes(folder).items():
        if width % run.geometry.group_size:
            raise UserError(
                f"geometry {run.geometry.name}: {run.model}'s {name} has {width} inputs, which groups of "
                f"{run.geometry.group_size} do not divide. Choose another group_size."
            )
    layer = {key: settings[key] for key in ("kmeans", "oaem", "codebooks")}
    inputs = {"model": read_json(manifest)["fingerprint"], "tokens": checksum(tokens)}
    dtype = compute_dtype(folder, device)
    if stream is not None:
        stream.require_dtype(dtype, device)
        inputs["stream"] = stream.identity
    init = plugin_version(ENTRY_POINTS, run.init)
    facts = {"run": run.path, "settings": dict(settings), "code": code, "init": init, **inputs}
    facts |= {"device": device.split(":")[0], "dtype": str(dtype)}
    return SequentialJob(
        run=run,
        model_folder=folder,
        family=family_of(load_config(folder)),
        layer=LayerSettings.model_validate(layer),
        tuning=BlockTuningSettings.model_validate(settings["block_tuning"]),
        dtype=dtype,
        device=device,
        fingerprint=fingerprint(facts),
        made_by=collect(device, settings=settings, code=code, seed=run.seed),
        stream=stream,
    )


@torch.no_grad()
def quantize_range(
    job: SequentialJob, tokens: Tensor, start: int, stop: int, blocks: Path, activations: Path
) -> list[dict[str, Any]]:
    """Quantise blocks `start` to `stop` - 1; returns their reports in order.

    tokens: [sequences, window] integer. Blocks that are already there, undamaged and made under the same fingerprint,
    are kept. The inputs of block `stop` are left in `activations` for the next job, unless the job is on original
    inputs: then tokens and `activations` are not looked at.
    """
    missing = [index for index in range(start, stop) if block_report(blocks, index, job.fingerprint) is None]
    if len(missing) < stop - start:
        log.info("%s: %d of %d blocks are there already", job.run.path, stop - start - len(missing), stop - start)
    progress = Progress(f"{job.run.path} blocks", len(missing), every=20.0)
    hidden, at = torch.empty(0), -1
    with ActivationWriter(activations, job.fingerprint) as writer:
        for index in missing:
            if job.stream is not None and job.on_original_inputs:
                hidden = job.stream.inputs(index).to(job.device)
            elif index != at:
                writer.wait()
                hidden = block_inputs(job, tokens, index, blocks, activations)
            hidden, worst = _advance(job, hidden, index, blocks, writer)
            at = index + 1
            progress.step(f"largest relative error of a layer {worst:.3f}")
    return [block_report(blocks, index, job.fingerprint) or {} for index in range(start, stop)]


def _advance(
    job: SequentialJob, hidden: Tensor, index: int, blocks: Path, writer: ActivationWriter
) -> tuple[Tensor, float]:
    """Quantise block `index` and store it; returns the inputs of the next block and the largest layer error."""
    clock = PhaseClock(_synchronizer(job.device))
    with clock.phase("load"):
        block = load_for_calibration(job.model_folder, index, job.dtype, job.device)
        arguments = block_arguments(job.model_folder, index, hidden.shape[1], job.dtype, job.device)
    require_finite_weights(block, job.model_folder, index, job.dtype)
    groups, tuned, original = job.family.sequential_groups, job.tuning.epochs > 0, job.on_original_inputs
    targets = None
    if job.stream is not None and not original:
        with clock.phase("forward"):
            targets = _unquantised_outputs(block, job.stream.inputs(index).to(job.device), arguments)
    walk = BlockWalk(block, hidden, arguments, groups, tuned, unquantised_targets=original, targets=targets)
    try:
        layers = quantize_block(job, walk, index, clock)
    except UserError as error:
        raise UserError(f"{job.run.path}, block {index}: {error}") from None
    if not original and index + 1 < block_count(job.model_folder):
        with clock.phase("forward"):
            hidden = walk.outputs()
        require_finite(hidden, f"{job.run.path}, block {index}")
        with clock.phase("save"):
            writer.write(index + 1, hidden)
    report = {"linears": layers, "seconds": clock.seconds, "provenance": job.made_by}
    write_block(blocks, index, state_of(block), job.fingerprint, report)
    if not original and index + 1 == block_count(job.model_folder):
        writer.remove_before(index + 1)
    return hidden, max(layer["relative_error"] for layer in layers.values())


def _unquantised_outputs(block: nn.Module, inputs: Tensor, arguments: dict[str, Any]) -> Tensor:
    """What the unquantised model's `block` makes of its `inputs`: to the bit the next block's inputs in the stream."""
    return run_block(block, inputs, arguments, batch=batch_size(inputs))


def quantize_block(job: SequentialJob, walk: BlockWalk, index: int, clock: PhaseClock) -> dict[str, dict[str, Any]]:
    """Replace the linears of the walk's block in place, one sequential group after the other; returns their reports."""
    reports = {}
    for number, group in enumerate(walk.groups):
        with clock.phase("forward"):
            hessians, targets = walk.observe(number)
        for name in group:
            shape = _linear(walk.block, name).weight.shape
            result = _quantize_linear(job, walk.block, name, hessians[name], index, clock)
            reports[name] = {
                "relative_error": result.relative_error,
                "epochs": result.epochs,
                "rho": job.run.geometry.rho(*shape),
                "true_bits": job.run.geometry.true_bits(*shape),
                "weights": shape.numel(),
            }
        hessians.clear()
        if targets is not None:
            seed = derive(job.run.seed, "block_tuning", index, number)
            with clock.phase("block_tuning"):
                tune_block(walk.block, walk.hidden, targets, walk.arguments, job.tuning, seed)
        del targets  # gigabytes, which the next observation needs for its own
    return reports


def _quantize_linear(
    job: SequentialJob, block: nn.Module, name: str, hessian: Tensor, index: int, clock: PhaseClock
) -> LayerResult:
    try:
        result = quantize_layer(
            _linear(block, name).weight.detach().float(),
            hessian,
            job.run.geometry,
            init=job.run.init,
            beam_width=job.run.beam_width,
            max_epochs=job.run.max_epochs,
            settings=job.layer,
            seed=derive(job.run.seed, index, name),
            clock=clock,
        )
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    log.debug("block %d %s: relative error %.5f after %d epochs", index, name, result.relative_error, result.epochs)
    replace_linear(block, name, result.weight, job.dtype)
    return result


def block_inputs(job: SequentialJob, tokens: Tensor, index: int, blocks: Path, activations: Path) -> Tensor:
    """The inputs of block `index` [sequences, window, hidden] on the job's device.

    They are read from `activations`. Where they are missing or damaged, the nearest ones before are taken, or the
    embedded tokens, and the finished blocks between are run again: the same tensors in the same order, the same bits.
    """
    for nearest in range(index, -1, -1):
        hidden = read_activations(activations, nearest, job.fingerprint) if nearest else None
        if hidden is not None or nearest == 0:
            break
    hidden = embed_tokens(job.model_folder, tokens, job.dtype, job.device) if hidden is None else hidden.to(job.device)
    for done in range(nearest, index):
        log.info("%s: running finished block %d again for its outputs", job.run.path, done)
        if block_report(blocks, done, job.fingerprint) is None:
            raise UserError(
                f"{block_path(blocks, done)}: missing, damaged, or made with other settings than block {index} needs. "
                f"Delete {blocks}/range-*.json and run the same command again."
            )
        block = load_for_calibration(job.model_folder, done, job.dtype, job.device)
        restore(block, load_block_state(blocks, done), job.dtype)
        arguments = block_arguments(job.model_folder, done, hidden.shape[1], job.dtype, job.device)
        hidden = run_block(block, hidden, arguments, batch=batch_size(hidden))
    return hidden


def restore(block: nn.Module, state: QuantizedState, dtype: torch.dtype) -> None:
    """Put a finished block's quantised linears and tuned tensors back in place of the original ones."""
    device = next(block.parameters()).device
    for name, weight in state.linears.items():
        replace_linear(block, name, weight, dtype)
    block.to(device)
    known = dict(block.named_parameters()) | dict(block.named_buffers())
    with torch.no_grad():
        for name, tensor in state.tensors.items():
            known[name].copy_(tensor)


def replace_linear(block: nn.Module, name: str, weight: AdditiveWeight, dtype: torch.dtype) -> None:
    """Replace the linear called `name` by its quantised form with continuous parameters in `dtype`."""
    parent, _, child = name.rpartition(".")
    bias = _linear(block, name).bias
    setattr(block.get_submodule(parent), child, QuantizedLinear(weight, bias).to(dtype))


def _linear(block: nn.Module, name: str) -> nn.Linear:
    """The linear called `name`; UserError if the block's layers are not what its family says."""
    linear = block.get_submodule(name)
    if not isinstance(linear, nn.Linear):
        raise UserError(f"{name} is a {type(linear).__name__}, not a linear layer: the model's family does not fit it.")
    return linear


def _synchronizer(device: str) -> Callable[[], None] | None:
    return torch.cuda.synchronize if device.startswith("cuda") else None
