"""The scripts of the rules as processes of their own, without Snakemake around them: quick to start, quick to kill.

A job is forked from a server that has the library imported, so that a kill costs no import. What runs in it is the very
script of the rule, with the arguments that the rule would give it, in a folder laid out as the workflow lays it out.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from oaem.config.schema import Config
from oaem.planning import layout
from oaem.planning import rules as planning
from oaem.planning.checks import checked
from tests.shared import SERVER, print_to

ROOT = Path(__file__).resolve().parents[2]
INIT = "oaem"
RUN = f"runs/tiny/2bpp-2x4g4/{INIT}/b2-e2/s42"
SECONDS = 300.0
Sabotage = Callable[[], None]


@dataclass(frozen=True)
class Arguments:
    """What a rule hands to its script."""

    script: str
    input: Mapping[str, Any]
    output: Mapping[str, str]
    log: str
    params: Mapping[str, Any] = field(default_factory=dict)
    wildcards: Mapping[str, str] = field(default_factory=dict)


class Job:
    """A running job: a process, the file that holds all it printed, and its log, which earlier jobs may have begun."""

    def __init__(self, process: ForkServerProcess, terminal: Path, log: Path) -> None:
        self.process, self.terminal, self.log = process, terminal, log
        self.logged = _size(log)
        process.start()

    @property
    def running(self) -> bool:
        return self.process.exitcode is None

    def wait_for_work(self) -> None:
        """Wait until the job has its device and begins to compute, which it logs after its own begin."""
        deadline = time.monotonic() + SECONDS
        while self.running and self.new_lines() < 2:
            assert time.monotonic() < deadline, "the job does not begin"
            time.sleep(0.001)

    def new_lines(self) -> int:
        """How many lines the log has got since this job was started."""
        return self.log.read_bytes()[self.logged :].count(b"\n") if self.log.exists() else 0

    def kill(self) -> bool:
        """kill -9; whether it hit the job alive."""
        self.process.kill()
        self.process.join(SECONDS)
        return self.process.exitcode == -9

    def finish(self) -> tuple[int, str]:
        """Wait for the end; returns the exit code and what was printed."""
        self.process.join(SECONDS)
        assert self.process.exitcode is not None, f"still running: {self.terminal.read_text()}"
        return self.process.exitcode, self.terminal.read_text()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _run(arguments: Arguments, folder: Path, terminal: Path, sabotage: Sabotage | None) -> None:
    """The body of a job's process."""
    os.chdir(folder)
    print_to(terminal)
    if sabotage is not None:
        sabotage()
    values = {name: SimpleNamespace(**getattr(arguments, name)) for name in ("input", "output", "params", "wildcards")}
    told = SimpleNamespace(**values, log=[arguments.log], threads=1)
    runpy.run_path(str(ROOT / "workflow/scripts" / f"{arguments.script}.py"), init_globals={"snakemake": told})


@dataclass
class Pipeline:
    """A folder with the tiny grid's inputs and results, and its jobs."""

    folder: Path
    values: dict[str, Any]
    started: int = 0

    @property
    def config(self) -> Config:
        return checked(self.values)

    @property
    def run_folder(self) -> Path:
        return self.folder / "results" / RUN

    def start(self, arguments: Arguments, sabotage: Sabotage | None = None) -> Job:
        """Start a job; `sabotage` runs in its process first and must be importable by name."""
        self.started += 1
        terminal = self.folder.with_name(f"{self.folder.name}-terminal-{self.started}.txt")
        process = SERVER.Process(target=_run, args=(arguments, self.folder, terminal, sabotage), daemon=True)
        return Job(process, terminal, self.folder / arguments.log)

    def run(self, arguments: Arguments, sabotage: Sabotage | None = None) -> tuple[int, str]:
        """Run a job to its end; returns its exit code and what it printed."""
        return self.start(arguments, sabotage).finish()

    def make(self, *jobs: Arguments) -> None:
        """Run jobs that must succeed."""
        for job in jobs:
            code, output = self.run(job)
            assert code == 0, output

    def without(self, job: str) -> Arguments:
        """The arguments of a job (quantize, pv_tune or perplexity) whose results are removed."""
        if job == "perplexity":
            (self.run_folder / "metrics/pre_pv-perplexity.json").unlink()
            return self.perplexity("pre_pv")
        shutil.rmtree(self.run_folder / ("blocks" if job == "quantize" else "pv"))
        return self.quantize() if job == "quantize" else self.pv_tune()

    def equals(self, other: Pipeline) -> bool:
        """Whether blocks, tuned states and perplexities are the same to the byte."""
        metrics = f"results/{RUN}/metrics/pre_pv-perplexity.json"
        mine, theirs = ((each.blocks(), each.tuned(), each.read(metrics)) for each in (self, other))
        return mine == theirs

    # --- the rules

    def model(self) -> Arguments:
        params = {"source": planning.model_parameters(self.config, "tiny"), "code": planning.code("model")}
        return Arguments("model", {}, {"manifest": layout.model_manifest("tiny")}, "logs/model.log", params)

    def tokens(self, name: str) -> Arguments:
        params = {"spec": planning.token_parameters(self.config, name), "code": planning.code("tokens")}
        output = {"tokens": layout.tokens("tiny", name)}
        return Arguments("tokens", self._model, output, f"logs/tokens-{name}.log", params)

    @staticmethod
    def path(init: str) -> str:
        """The path of the run with that initialisation."""
        return RUN.replace(INIT, init)

    def quantize(self, start: int = 0, stop: int | None = None, init: str = INIT) -> Arguments:
        run = self.path(init)
        stop = layout.block_count(self.config, "tiny") if stop is None else stop
        params = {"settings": planning.quantization_parameters(self.config), "code": planning.code("quantization")}
        wildcards = {"run": run, "start": str(start), "stop": str(stop)}
        output = {"manifest": layout.range_manifest(run, start, stop)}
        read = {"tokens": planning.calibration_tokens(run), "stream": planning.stream(self.config, run)}
        inputs = {**self._model, **read}
        return Arguments("quantize_blocks", inputs, output, "logs/quantize.log", params, wildcards)

    def stream(self) -> Arguments:
        params = {"settings": planning.stream_parameters(self.config), "code": planning.code("stream")}
        inputs = {**self._model, "tokens": planning.calibration_tokens(RUN)}
        output = {"manifest": layout.stream("tiny", 42)}
        return Arguments(
            "calibration_stream", inputs, output, "logs/stream.log", params, {"model": "tiny", "seed": "42"}
        )

    def quantized(self) -> Arguments:
        output = {"manifest": layout.quantized(RUN), "metrics": layout.metric(RUN, "quantization", "time")}
        inputs = {"ranges": planning.ranges(self.config, RUN)}
        return Arguments("quantized", inputs, output, "logs/quantized.log", {}, {"run": RUN})

    def pv_tune(self) -> Arguments:
        params = {"settings": planning.pv_parameters(self.config), "code": planning.code("pv")}
        output = {"manifest": layout.pv_manifest(RUN), "metrics": layout.metric(RUN, "pv_tuning", "time")}
        inputs = {**self._model, "tokens": planning.pv_tokens(self.config, RUN)}
        return Arguments("pv_tune", inputs, output, "logs/pv.log", params, {"run": RUN})

    def perplexity(self, stage: str, subject: str = RUN) -> Arguments:
        params = {"settings": planning.perplexity_parameters(self.config), "code": planning.code("perplexity")}
        inputs = {**self._model, "tokens": planning.evaluation_tokens(self.config, subject)}
        output = {"metrics": layout.metric(subject, stage, "perplexity")}
        return Arguments("perplexity", inputs, output, "logs/ppl.log", params, {"subject": subject, "stage": stage})

    def export(self, stage: str) -> Arguments:
        params = {"card": planning.card_parameters(self.config, RUN)}
        inputs = {**self._model, "metrics": planning.card_metrics(self.config, RUN)}
        output = {"manifest": f"results/{RUN}/export/{stage}.json"}
        return Arguments("export", inputs, output, "logs/export.log", params, {"run": RUN, "stage": stage})

    @property
    def _model(self) -> dict[str, str]:
        return {"model": layout.model_manifest("tiny")}

    # --- what they leave

    def blocks(self) -> dict[str, bytes]:
        """Every finished block: its name and bytes."""
        found = sorted((self.run_folder / "blocks").glob("*.safetensors"))
        return {path.name: path.read_bytes() for path in found}

    def finished_blocks(self) -> dict[Path, int]:
        """When each block was written whose report, which is written after it, is there."""
        found = sorted((self.run_folder / "blocks").glob("*.safetensors"))
        return {path: path.stat().st_mtime_ns for path in found if path.with_suffix(".json").exists()}

    def tuned(self) -> dict[str, bytes]:
        """The three outcomes of a tuning."""
        return {path.name: path.read_bytes() for path in sorted((self.run_folder / "pv").glob("*.safetensors"))}

    def read(self, path: str) -> Any:
        """A JSON file of the results, without what differs between executions: times and the machine."""
        return without_times(json.loads((self.folder / path).read_text(encoding="utf-8")))

    def litter(self) -> list[Path]:
        """Temporary files that nobody will ever name."""
        return sorted((self.folder / "results").rglob(".*.tmp"))


def process_of(folder: Path, log: str, running: subprocess.Popen[str]) -> int:
    """The job that works in `folder` and writes `log`, as soon as it has begun; `running` is its snakemake."""
    deadline = time.monotonic() + SECONDS
    while True:
        text = (folder / log).read_text() if (folder / log).exists() else ""
        for process in re.findall(r"the job begins: process (\d+)", text)[-1:]:
            with suppress(OSError):  # an earlier attempt's
                if Path(f"/proc/{process}/cwd").samefile(folder):
                    return int(process)
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline, f"{log}: the job does not begin"
        time.sleep(0.005)


def without_times(value: Any) -> Any:
    """A value read from JSON without seconds and provenance, at any depth."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in ("seconds", "provenance")}
    return [without_times(item) for item in value] if isinstance(value, list) else value
