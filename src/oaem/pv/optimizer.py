"""One optimiser step of PV-tuning: everything continuous by LAMB, then codes towards their straight-through buffers.

With several ranks each one owns the buffers and moments of some parts of the model (`shares`): gradients are summed
where the part is owned, the owner makes the step, and the others get what came of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from oaem.config.schema import PVTuning
from oaem.pv.lamb import Lamb, lamb_step
from oaem.pv.shares import owners, part_of
from oaem.pv.straight_through import reencode
from oaem.pv.student import Student, StudentLinear
from oaem.pv.team import ALONE, Team
from oaem.quantization.weight import weight_gradients
from oaem.runtime.seeds import generator

State = dict[str, Tensor]


class PVOptimizer:
    """The state and the step of PV-tuning for every parameter of a student.

    buffers: by linear, `buffer` [out, in] and the moments of its own LAMB (`buffer.second`, `buffer.first`).
    moments: by parameter, the LAMB moments of codebooks, scales and all that is not quantised.
    Of either this rank holds what it owns. It lives on the CPU if offloaded and visits the device one layer at a time.
    """

    def __init__(
        self,
        student: Student,
        settings: PVTuning,
        seed: int,
        offload_buffers: bool = False,
        offload_moments: bool = False,
        team: Team = ALONE,
    ) -> None:
        self.student, self.settings, self.seed, self.team = student, settings, seed, team
        self.offload_buffers, self.offload_moments = offload_buffers, offload_moments
        self.continuous = Lamb(settings.lr, settings.beta1, settings.beta2, settings.eps)
        self.discrete = Lamb(settings.code_lr, settings.code_beta1, settings.code_beta2, settings.eps)
        self.buffers: dict[str, State] = {}
        self.moments: dict[str, State] = {}
        self._owners = owners(self._sizes(), team.size)
        for name, linear in student.linears.items():
            if not self.owns(name):
                continue
            dense = linear.dequantize()
            own = {f"buffer.{key}": value for key, value in self.discrete.moments(dense).items()}
            self.buffers[name] = self._home({"buffer": dense} | own, offload_buffers)
            for part in ("codebooks", "row_scales"):
                self._add_moments(f"{name}.{part}", linear.get_parameter(part))
        for name, parameter in student.parameters.items():
            if self.owns(name):
                self._add_moments(name, parameter)

    def owner(self, name: str) -> int:
        """The rank that holds the state of a linear or parameter."""
        return self._owners[part_of(name)]

    def owns(self, name: str) -> bool:
        """Whether this rank does."""
        return self.owner(name) == self.team.rank

    def collect(self) -> None:
        """Add up the gradients of all ranks where they are needed; nothing to do alone."""
        for name, gradient in self._gradients().items():
            self.team.sum_to(self.owner(name), gradient)

    def gradient_norm(self) -> float:
        """Norm of the gradient of what this rank owns, dequantised weights and unquantised parameters.

        Not finite if any entry is not.
        """
        norms = [torch.linalg.vector_norm(each) for name, each in self._gradients().items() if self.owns(name)]
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

    def step(self, step: int) -> int:
        """Update everything with the gradients at hand, those of `step` (from 1); returns how many codes changed."""
        own = {name: linear for name, linear in self.student.linears.items() if self.owns(name)}
        changed = [self._linear_step(name, linear, step) for name, linear in own.items()]
        for name, parameter in self.student.parameters.items():
            if parameter.grad is not None and self.owns(name):
                self._lamb_step(name, parameter, parameter.grad, step)
        self._spread()
        here = int(torch.stack(changed).sum()) if changed else 0
        return int(sum(there for (there,) in self.team.numbers(here)))

    def _gradients(self) -> dict[str, Tensor]:
        gradients = {name: linear.weight_gradient for name, linear in self.student.linears.items()}
        parameters = self.student.parameters.items()
        return gradients | {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}

    def _spread(self) -> None:
        """Let every rank have what each owner's step made; nothing to do alone."""
        if self.team.size == 1:
            return
        for name, linear in self.student.linears.items():
            for tensor in (linear.codes, linear.codebooks, linear.row_scales):
                self.team.spread(self.owner(name), tensor)
            if not self.owns(name):
                linear.refresh(linear.dequantize())
        for name, parameter in self.student.parameters.items():
            if parameter.grad is not None:
                self.team.spread(self.owner(name), parameter)

    def _sizes(self) -> dict[str, int]:
        """Bytes of the state of each part, by which they are shared out."""
        sizes: dict[str, int] = {}
        copies = 1 + self.discrete.stored, self.continuous.stored
        for name, linear in self.student.linears.items():
            continuous = linear.codebooks.nbytes + linear.row_scales.nbytes
            own = copies[0] * linear.weight_gradient.nbytes + copies[1] * continuous
            sizes[part_of(name)] = sizes.get(part_of(name), 0) + own
        for name, parameter in self.student.parameters.items():
            sizes[part_of(name)] = sizes.get(part_of(name), 0) + copies[1] * parameter.nbytes
        return sizes

    @torch.no_grad()
    def _linear_step(self, name: str, linear: StudentLinear, step: int) -> Tensor:
        gradient = linear.weight_gradient
        codebooks_gradient, scales_gradient = weight_gradients(
            gradient, linear.codes, linear.codebooks, linear.row_scales
        )
        self._lamb_step(f"{name}.codebooks", linear.codebooks, codebooks_gradient, step)
        self._lamb_step(f"{name}.row_scales", linear.row_scales, scales_gradient, step)
        with self._visiting(self.buffers[name], self.offload_buffers) as state:
            own = {key.removeprefix("buffer."): value for key, value in state.items() if key != "buffer"}
            lamb_step(state["buffer"], gradient, own, step, self.discrete)
            dense, changed = reencode(
                linear.codes,
                linear.codebooks,
                linear.row_scales,
                state["buffer"],
                self.settings.max_code_change,
                generator(self.seed, "pv", "reencode", step, name),
            )
        linear.refresh(dense)
        return changed

    def _lamb_step(self, name: str, parameter: Tensor, gradient: Tensor, step: int) -> None:
        with self._visiting(self.moments[name], self.offload_moments) as moments:
            lamb_step(parameter, gradient, moments, step, self.continuous)

    def _add_moments(self, name: str, parameter: Tensor) -> None:
        self.moments[name] = self._home(self.continuous.moments(parameter.detach()), self.offload_moments)

    def _home(self, state: State, offloaded: bool) -> State:
        """Where `state` lives between steps: pinned memory of the host if offloaded, else where it is."""
        if not offloaded:
            return state
        homes = {
            key: torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda) for key, value in state.items()
        }
        for key, home in homes.items():
            home.copy_(state[key])
        return homes

    @contextmanager
    def _visiting(self, state: State, offloaded: bool) -> Iterator[State]:
        """`state` on the device for the body of the block, and what the body made of it back at home after it."""
        if not offloaded:
            yield state
            return
        guests = {key: home.to(self.student.device, copy=True, non_blocking=True) for key, home in state.items()}
        yield guests
        for key, home in state.items():  # ordered after the step on the device's stream, as is the next visit
            home.copy_(guests[key], non_blocking=True)
