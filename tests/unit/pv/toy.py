"""A tiny random Llama, a quantised state of it and a tuning of it, for the tests of PV-tuning.

`python -m tests.unit.pv.toy MODEL FOLDER [kill-step N | kill-save N]` tunes once and kills itself, for good, in step N
or after N files of a resumable state.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from oaem.calibration.artefacts import QuantizedState
from oaem.config.schema import PVTuning, TokenSet
from oaem.models.load import load_model
from oaem.pv import resume
from oaem.pv.optimizer import PVOptimizer
from oaem.pv.plan import Placement
from oaem.pv.team import ALONE, Team
from oaem.pv.trainer import PVJob, tune
from oaem.quantization.weight import AdditiveWeight, normalised_groups, row_scales_of

LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
LINEARS += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
IN_PLACE = Placement()
VOCABULARY, WINDOW, SEQUENCES = 97, 24, 11


class Stop(Exception):  # noqa: N818 (a signal, not an error)
    """Stands for a kill in tests that stay in one process, or of all ranks."""


def make_model(folder: Path, **changes: Any) -> Path:
    """A Llama of two blocks in bfloat16 with tied embeddings."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    config = LlamaConfig(**(sizes | {"tie_word_embeddings": True, "initializer_range": 0.2} | changes))
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def quantise(weight: Tensor, num_codebooks: int = 2, size: int = 16, width: int = 4, seed: int = 0) -> AdditiveWeight:
    """A rough additive weight: random groups as the first codebook, small noise as the others, nearest codes."""
    random = torch.Generator().manual_seed(seed)
    scales = row_scales_of(weight)
    groups = normalised_groups(weight, scales, width)
    first = groups.flatten(0, 1)[torch.randperm(groups[..., 0].numel(), generator=random)[:size]]
    others = torch.randn(num_codebooks - 1, size, width, generator=random) * groups.std() * 0.3
    codes = torch.randint(size, (*groups.shape[:2], num_codebooks), generator=random)
    codes[..., 0] = torch.cdist(groups, first).argmin(dim=-1)
    return AdditiveWeight(codes.to(torch.uint8), torch.cat([first[None], others]), scales)


def make_state(folder: Path) -> QuantizedState:
    """Every linear of the model quantised, stored in bfloat16 as a run leaves it, with the blocks' norms."""
    model = load_model(folder, torch.float32, "cpu")
    state = QuantizedState()
    for name, parameter in model.named_parameters():
        if any(name.endswith(f"{linear}.weight") for linear in LINEARS):
            weight = quantise(parameter.detach())
            stored = AdditiveWeight(weight.codes, weight.codebooks.bfloat16(), weight.row_scales.bfloat16())
            state.linears[name.removesuffix(".weight")] = stored
        elif ".layers." in name:
            state.tensors[name] = parameter.detach().bfloat16()
    return state


def make_tokens(sequences: int = SEQUENCES, seed: int = 1) -> Tensor:
    """Random tokens [sequences, WINDOW]."""
    return torch.randint(VOCABULARY, (sequences, WINDOW), generator=torch.Generator().manual_seed(seed))


def make_settings(**changes: Any) -> PVTuning:
    """Three epochs of three steps of three sequences; two sequences of each epoch fill no batch."""
    text = TokenSet(corpus="toy", protocol="concatenated", window=WINDOW)
    values: dict[str, Any] = {"text": text, "validation_text": text, "test": "toy", "epochs": 3, "batch_size": 3}
    return PVTuning(**(values | {"token_chunk": 10, "save_every": 2} | changes))


def make_job(folder: Path, placement: Placement | None = IN_PLACE, team: Team = ALONE, **changes: Any) -> PVJob:
    """A job in float32 on the CPU, for all ranks of `team`."""
    settings = make_settings(gpus=team.size, **changes)
    return PVJob(folder, settings, 7, torch.bfloat16, torch.float32, "cpu", "toy", placement, team)


@torch.no_grad()
def toy_perplexity(seed: int) -> Any:
    """A callable: perplexity on random tokens, small enough to run often."""
    tokens = make_tokens(2, seed)

    def measure(model: Any) -> float:
        logits = model(tokens).logits[:, :-1].flatten(0, 1).float()
        return float(torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).exp())

    return measure


def run_toy(
    model: Path, folder: Path, placement: Placement | None = IN_PLACE, team: Team = ALONE, **changes: Any
) -> dict[str, Any]:
    """Tune the toy in `folder`."""
    job = make_job(model, placement, team, **changes)
    return tune(job, make_state(model), make_tokens(), folder, toy_perplexity(2), toy_perplexity(3), lambda line: None)


@contextmanager
def stopped_in(number: int) -> Iterator[None]:
    """A tuning in the body is left in the middle of step `number`; AssertionError if it is not."""
    step = PVOptimizer.step

    def dying(self: PVOptimizer, current: int) -> int:
        if current == number:
            raise Stop
        return step(self, current)

    PVOptimizer.step = dying  # type: ignore[method-assign]
    try:
        yield
    except Stop:
        return
    finally:
        PVOptimizer.step = step  # type: ignore[method-assign]
    raise AssertionError("it was not stopped")


def _kill(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arrange_death(where: str, number: int) -> None:
    if where == "kill-step":
        linear_step = PVOptimizer._linear_step

        def dying_step(self: PVOptimizer, name: str, linear: Any, step: int) -> int:
            if step == number and name.endswith("mlp.up_proj"):  # in the middle of the update
                _kill()
            return linear_step(self, name, linear, step)

        PVOptimizer._linear_step = dying_step  # type: ignore[method-assign]
        return
    save_file, written = resume.save_file, []

    def dying_save(*arguments: Any) -> None:
        written.append(arguments)
        if len(written) == number:
            _kill()
        save_file(*arguments)

    resume.save_file = dying_save


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 3:
        _arrange_death(sys.argv[3], int(sys.argv[4]))
    run_toy(Path(sys.argv[1]), Path(sys.argv[2]))
