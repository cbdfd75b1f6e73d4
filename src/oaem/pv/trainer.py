"""PV-tuning of a whole model: batches, epochs, selection of the checkpoint, resume (section 5.2).

In the folder of a tuning lie, at the end, `best_test.safetensors` (the paper's protocol: the epoch of the lowest
perplexity on the test set), `best_validation.safetensors`, `last.safetensors` and `result.json`; while it runs,
`epochs/` and `resume/` too. A tuning killed at any moment and started again ends with the same bytes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oaem.calibration.artefacts import QuantizedState, save_state
from oaem.config.geometry import Geometry
from oaem.config.schema import PVTuning
from oaem.errors import UserError
from oaem.models.load import load_config
from oaem.pv import outcomes, resume
from oaem.pv.automatic import automatic_plan
from oaem.pv.loss import backward_kl
from oaem.pv.optimizer import PVOptimizer
from oaem.pv.plan import Placement, sequences_at_once
from oaem.pv.student import Student
from oaem.pv.teacher import Teacher
from oaem.pv.team import ALONE, Team
from oaem.runtime.atomic import read_json
from oaem.runtime.heap import keep_freed_memory
from oaem.runtime.progress import PhaseClock, Progress
from oaem.runtime.provenance import fingerprint
from oaem.runtime.seeds import generator

log = logging.getLogger("oaem.pv")
Perplexity = Callable[[Any], float]
# Settings that decide no number here: what they choose (tokens, measures) is an argument, or only a matter of time.
WITHOUT_EFFECT = {"enabled", "save_every", "text", "validation_text", "test", "gradient_checkpointing"}


@dataclass(frozen=True)
class PVJob:
    """What a tuning is told; tensors come separately.

    dtype: of the model's storage. compute_dtype: of matrix products, and of the teacher; bfloat16 stands in for
    float16, in which gradients vanish. fingerprint: of the code and of whatever else decides the numbers; settings,
    seed, dtypes and the bytes of state and tokens are added to it. placement: None takes the fastest that fits.
    team: as many ranks as the settings' `gpus`, each in a process of its own with the same job on its own device.
    """

    model_folder: Path
    settings: PVTuning
    seed: int
    dtype: torch.dtype
    compute_dtype: torch.dtype
    device: str
    fingerprint: str
    placement: Placement | None = None
    team: Team = ALONE


def tune(
    job: PVJob,
    state: QuantizedState,
    tokens: Tensor,
    folder: Path,
    test: Perplexity,
    validation: Perplexity,
    report: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Tune `state` on `tokens` [sequences, window] and leave the three outcomes in `folder`; returns the result.

    test, validation: perplexity of a transformers causal LM, called under no_grad and autocast at each epoch's end.
    report: receives a line with an estimate now and then. A finished tuning in `folder` is returned as it is; a
    resumable one goes on; one of another fingerprint is left alone until this one replaces it. The caller sees to it
    that nobody else tunes there at the same time. Of a team every rank calls this with the same arguments but for
    the device, and has the result when all is done.
    Raises UserError for tokens that do not suit, a state that does not, and numbers that are not finite.
    """
    if job.team.size != job.settings.gpus:
        raise ValueError(f"{job.settings.gpus} ranks were to tune, {job.team.size} are here")
    _check_tokens(job, tokens)
    if job.compute_dtype == torch.float16:
        job = replace(job, compute_dtype=torch.bfloat16)
    identity = _identity(job, state, tokens)
    if job.device == "cpu":
        keep_freed_memory()
    done = outcomes.finished(folder, identity) if job.team.leads else None
    if job.team.numbers(done is not None)[0][0]:
        return done or read_json(folder / outcomes.RESULT)
    placement = job.placement or _automatic_placement(job, state, tokens, folder)
    run = _Tuning(job, placement, state, tokens, folder, identity, report)
    try:
        run.run(test, validation)
    finally:
        run.teacher.close()
    return dict(read_json(folder / outcomes.RESULT))


class _Tuning:
    """One execution: the tensors, and `progress`, the plain values that a resumed execution needs."""

    def __init__(
        self,
        job: PVJob,
        placement: Placement,
        state: QuantizedState,
        tokens: Tensor,
        folder: Path,
        identity: str,
        report: Callable[[str], None],
    ) -> None:
        self.job, self.initial, self.tokens, self.folder = job, state, tokens, folder
        self.identity = identity
        self.report = report if job.team.leads else lambda line: None
        self.near_tokens = tokens.to(job.device)  # a copy in each step would let the device run dry
        self.clock = PhaseClock(torch.cuda.synchronize if job.device.startswith("cuda") else None)
        self.per_epoch = len(tokens) // job.settings.batch_size
        self.steps = self.per_epoch * job.settings.epochs
        self.progress: dict[str, Any] = {"step": 0, "losses": [], "epochs": [], "seconds": {}}
        with self.clock.phase("teacher"):  # first, because its blocks may be let go before the student comes
            own = len(range(job.team.rank, len(tokens), job.team.size))
            count = Progress("PV-tuning, teacher", own, report=self.report)
            place, cache = placement.teacher, folder / "teacher.cache"
            self.teacher = Teacher(
                job.model_folder, self.near_tokens, job.compute_dtype, job.device, place, cache, count.step, job.team
            )
        self.student = Student(
            job.model_folder, state, job.dtype, job.compute_dtype, job.device, job.settings.gradient_checkpointing
        )
        offload = placement.offload_buffers, placement.offload_moments
        self.optimizer = PVOptimizer(self.student, job.settings, job.seed, *offload, job.team)

    def run(self, test: Perplexity, validation: Perplexity) -> None:
        """All steps that are left, and the outcomes."""
        self._resume()
        left = self.steps - self.progress["step"]
        count = Progress("PV-tuning, steps", left, report=self.report)
        for step in range(self.progress["step"] + 1, self.steps + 1):
            loss = self._step(step)
            epoch, inside = divmod(step, self.per_epoch)
            if inside == 0:
                self._end_epoch(epoch, test, validation)
            if step < self.steps and step % self.job.settings.save_every == 0:
                self._save()
            count.step(f"loss {loss:.4f}")
        result = {"fingerprint": self.identity, "steps": self.steps, "losses": self.progress["losses"]}
        result["seconds"] = dict(self.clock.seconds)
        if self.job.team.leads:
            outcomes.finish(self.folder, self.progress["epochs"], result)
        self.job.team.wait()

    def _step(self, step: int) -> float:
        """One optimiser step on the batch whose turn it is; returns its loss."""
        with self.clock.phase("tuning"):
            self.student.clear_gradients()
            batch = self.job.team.share(self._batch(step))
            at_once = sequences_at_once(self.job.settings, self.tokens.shape[1])
            shares = [self._backward(batch[first : first + at_once]) for first in range(0, len(batch), at_once)]
            self.optimizer.collect()
            loss = self._finite_loss(step, float(torch.stack(shares).sum()))
            self.optimizer.step(step)
        self.progress["step"] = step
        self.progress["losses"].append(loss)
        return loss

    def _batch(self, step: int) -> list[int]:
        """Sequences of `step`. Each epoch has an order of its own; what fills no batch at its end sits it out."""
        epoch, position = divmod(step - 1, self.per_epoch)
        order = torch.randperm(len(self.tokens), generator=generator(self.job.seed, "pv", "order", epoch)).tolist()
        size = self.job.settings.batch_size
        return order[position * size : (position + 1) * size]

    def _backward(self, sequences: list[int]) -> Tensor:
        """Add the gradient of some sequences' share of the batch's mean loss; returns that share."""
        hidden = self.student.hidden(torch.stack([self.near_tokens[index] for index in sequences]).long())
        target = torch.cat([self.teacher.hidden(index) for index in sequences])
        share = len(sequences) / self.job.settings.batch_size
        chunk = self.job.settings.token_chunk
        return backward_kl(hidden, self.student.head, target, self.teacher.head, chunk, share)

    def _finite_loss(self, step: int, own: float) -> float:
        """The loss of the batch, of which `own` is this rank's share; UserError if it or a gradient is not finite."""
        losses, norms = zip(*self.job.team.numbers(own, self.optimizer.gradient_norm()), strict=True)
        loss, norm = float(torch.tensor(losses).sum()), math.hypot(*norms)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"PV-tuning, step {step} of {self.steps}: loss {loss}, gradient norm {norm}. Nothing was updated with "
                f"it, and what {self.folder} holds from earlier steps is whole. Lower pv.lr or pv.code_lr, or look for "
                "layers with a large error in the quantised model, then run the same command again."
            )
        return loss

    @torch.no_grad()
    def _end_epoch(self, epoch: int, test: Perplexity, validation: Perplexity) -> None:
        with self.clock.phase("evaluation"), self.student.autocast():
            values = self._measured({"test": test, "validation": validation})
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"PV-tuning, end of epoch {epoch}: perplexity on the {name} set is {value}. Lower pv.lr or "
                    "pv.code_lr, or check the quantised model's own perplexity; then run the same command again."
                )
        if not self.job.team.leads:
            return
        losses = self.progress["losses"][-self.per_epoch :]
        tuned = self.student.state()
        changed = outcomes.share_of_changed_codes(self.initial, tuned)
        record = {"epoch": epoch, "loss": math.fsum(losses) / len(losses), **values, "codes_changed": changed}
        with self.clock.phase("saving"):
            metadata = {"fingerprint": self.identity, **record}
            digest = save_state(outcomes.epoch_file(self.folder, epoch), tuned, metadata)
        self.progress["epochs"].append(record | {"sha256": digest})
        self.report(
            f"PV-tuning, epoch {epoch} of {self.job.settings.epochs}: mean loss {record['loss']:.4f}, perplexity "
            f"{values['test']:.3f} on test, {values['validation']:.3f} on validation, {changed:.1%} of codes changed"
        )

    def _measured(self, measures: dict[str, Perplexity]) -> dict[str, float]:
        """The value of each measure on the student, which is the same on every rank: one measure a rank, in turn."""
        team = self.job.team
        turns = {name: number % team.size for number, name in enumerate(measures)}
        mine = {name: measures[name](self.student.model) for name, rank in turns.items() if rank == team.rank}
        everyones = team.numbers(*(mine.get(name, 0.0) for name in measures))
        return {name: everyones[rank][number] for number, (name, rank) in enumerate(turns.items())}

    def _save(self) -> None:
        with self.clock.phase("saving"):
            self.progress["seconds"] = dict(self.clock.seconds)
            resume.save_resumable(self.folder / "resume", self.optimizer, self.identity, self.progress)
            if self.progress["epochs"] and self.job.team.leads:  # only now does no resumable state refer to the others
                outcomes.drop_unchosen(self.folder, self.progress["epochs"])

    def _resume(self) -> None:
        step = self._resumable_step() if self.job.team.leads else 0
        step = int(self.job.team.numbers(step)[0][0])
        if step == 0:
            return
        found = resume.state_folder(self.folder / "resume", step, self.identity)
        resume.load_resumable(found, self.optimizer)
        self.progress = resume.load_progress(found)
        self.clock.seconds = dict(self.progress["seconds"])
        self.report(f"PV-tuning: going on after step {step} of {self.steps}")

    def _resumable_step(self) -> int:
        """The step after which it can go on, 0 if there is none."""
        found = resume.find_resumable(self.folder / "resume", self.identity)
        if found is None:
            return 0
        progress = resume.load_progress(found)
        if not outcomes.are_whole(self.folder, progress["epochs"]):
            log.warning("%s: states of earlier epochs are missing or damaged; tuning starts again", self.folder)
            return 0
        return int(progress["step"])


def _automatic_placement(job: PVJob, state: QuantizedState, tokens: Tensor, folder: Path) -> Placement:
    num_codebooks, size, width = next(iter(state.linears.values())).codebooks.shape
    geometry = Geometry(num_codebooks, (size - 1).bit_length(), width)
    numbers = len(tokens), tokens.shape[1], job.compute_dtype, job.device, folder, job.team
    plan = automatic_plan(job.model_folder, geometry, job.settings, *numbers)
    if job.team.leads:
        log.debug("PV-tuning: %s\n%s", plan.placement, plan.table())
    return plan.placement


def _check_tokens(job: PVJob, tokens: Tensor) -> None:
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.numel() == 0:
        found = f"{tokens.dtype} {tuple(tokens.shape)}"
        raise UserError(f"PV tokens: expected whole numbers [sequences, window], found {found}. Make them again.")
    vocabulary = load_config(job.model_folder).vocab_size
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise UserError(
            f"PV tokens: values from {int(tokens.min())} to {int(tokens.max())}, the model in {job.model_folder} knows "
            f"0 to {vocabulary - 1}; they were made with another tokenizer. Delete them and run the same command again."
        )
    if len(tokens) < job.settings.batch_size:
        raise UserError(
            f"pv.batch_size: {job.settings.batch_size} sequences a step, but the PV text makes only {len(tokens)}. "
            "Lower it, or raise pv.text.documents or pv.text.windows."
        )


def _identity(job: PVJob, state: QuantizedState, tokens: Tensor) -> str:
    """What the bytes of the outcomes depend on, apart from the number of threads and the make of the device."""
    return fingerprint(
        {
            "caller": job.fingerprint,
            "settings": job.settings.model_dump(mode="json", exclude=WITHOUT_EFFECT),
            "seed": job.seed,
            "dtypes": [str(job.dtype), str(job.compute_dtype)],
            "device": job.device.split(":")[0],
            "inputs": outcomes.digest(state, tokens),
        }
    )
