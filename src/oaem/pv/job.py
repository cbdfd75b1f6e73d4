"""From the workflow's parameters to a PV-tuning: what is tuned, on what, and what the choice of an epoch looks at.

Where several devices tune together, this module is what torchrun starts on each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oaem.calibration.artefacts import load_blocks
from oaem.config.grid import Run
from oaem.config.schema import PVTuning
from oaem.corpora.tokens import read_tokens
from oaem.evaluation.perplexity import perplexity
from oaem.models.load import load_config
from oaem.models.precision import compute_dtype
from oaem.pv import outcomes
from oaem.pv.team import ALONE, Team, joined
from oaem.pv.trainer import PVJob, tune
from oaem.runtime.atomic import read_json
from oaem.runtime.ranks import be_rank, run_ranks


@dataclass(frozen=True)
class Tuning:
    """The tuning of a run as plain values, which another process can be told.

    run: its path. settings: the rule's parameters. model: the model's manifest, with the model folder beside it.
    blocks, folder: where the blocks lie and the outcomes are to lie. tokens: the files of tuning, validation and test
    tokens, in this order. code: the fingerprint of the code.
    """

    run: str
    settings: Mapping[str, Any]
    model: str
    blocks: str
    tokens: Sequence[str]
    folder: str
    code: str


def tune_run(tuning: Tuning, devices: Sequence[str], threads: int, log: Path) -> dict[str, Any]:
    """Tune the blocks of a run on all `devices`, of which each one but a single one gets a process of its own.

    threads: CPU threads of such a process. log: the job's. UserError with one message if one of them fails.
    """
    if len(devices) == 1:
        return tune_on(tuning, devices[0], ALONE)
    run_ranks("oaem.pv.job", asdict(tuning), devices, threads, log)
    return dict(read_json(Path(tuning.folder) / outcomes.RESULT))


def tune_on(tuning: Tuning, device: str, team: Team) -> dict[str, Any]:
    """This process's part of a tuning."""
    folder = Path(tuning.model).parent / "hf"
    job = PVJob(
        model_folder=folder,
        settings=PVTuning.model_validate(tuning.settings["pv"]),
        seed=Run.parse(tuning.run).seed,
        dtype=load_config(folder).dtype,
        compute_dtype=compute_dtype(folder, device),
        device=device,
        fingerprint=tuning.code,
        team=team,
    )
    texts = [read_tokens(Path(path))[0] for path in tuning.tokens]
    validation, test = (lambda model, text=text: perplexity(model, text, 1, device).value for text in texts[1:])
    state = load_blocks(folder, Path(tuning.blocks))
    return tune(job, state, texts[0], Path(tuning.folder), test=test, validation=validation)


def _rank(told: dict[str, Any], device: str) -> None:
    with joined(device) as team:
        tune_on(Tuning(**told), device, team)


if __name__ == "__main__":
    be_rank(_rank)
