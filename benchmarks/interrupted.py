"""One run of a grid through the workflow, killed with kill -9 on its way, against the same run left alone.

    python benchmarks/interrupted.py --output benchmarks/out/killed.json --configfile config/evidence.yaml \\
        --run runs/smollm2-135m/2bpp-2x8g8/oaem/b8-e100/s42 --blocks 10 --steps 30 60

Both are made from the model on, at the same time, in folders of their own. Snakemake and its jobs are killed as soon as
so many blocks are quantised, and as soon as PV-tuning can go on after such a step (a multiple of `pv.save_every`); each
time the same command goes on after `--unlock`. The JSON says what was there at each kill, and which files of the run
differ in the end: tensors in any byte, JSON files in anything but times, memory and provenance. The exit code is 1 if
one does. Not beside jobs that compute under NVIDIA's MPS, which may fall with the killed one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oaem.planning import layout
from oaem.runtime.atomic import write_json
from oaem.runtime.provenance import checksum

ROOT = Path(__file__).resolve().parents[1]
OF_THE_MOMENT = ("provenance", "seconds", "peak_bytes")  # keys, and metrics, that differ between two executions
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Attempt:
    """The workflow in a folder of its own, asked for all of one run."""

    folder: Path
    run: str
    options: tuple[str, ...]

    @property
    def place(self) -> Path:
        """Where the run lies."""
        return self.folder / layout.RESULTS / self.run

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Start Snakemake, with its jobs in one process group; what it prints is appended to a file of the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        targets = [layout.metric(self.run, stage, "perplexity") for stage in ("pre_pv", "post_pv")]
        command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--directory", str(self.folder)]
        with (self.folder / "terminal.txt").open("ab") as terminal:
            return subprocess.Popen(
                [*command, *self.options, *more, "--", *targets],
                cwd=ROOT, stdout=terminal, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def blocks(self) -> int:
        """How many blocks are quantised."""
        return len(list((self.place / "blocks").glob("[0-9]*.json")))

    def step(self) -> int:
        """The last step after which PV-tuning can go on; 0 if there is none."""
        states = (self.place / "pv" / "resume").glob("step-*/manifest.json")
        return max((int(state.parent.name.split("-")[1]) for state in states), default=0)

    def files(self) -> dict[str, str]:
        """What the run left, by file: a checksum of tensors, the text of JSON without what is of the moment."""
        found = {}
        for path in sorted(self.place.rglob("*")):
            if path.suffix == ".safetensors":
                found[str(path.relative_to(self.place))] = checksum(path)
            elif path.suffix == ".json":
                lasting = _lasting(json.loads(path.read_text(encoding="utf-8")))
                found[str(path.relative_to(self.place))] = json.dumps(lasting, sort_keys=True)
        return found


def _lasting(value: Any) -> Any:
    """`value` without the keys and the measurements that differ between two executions."""
    if isinstance(value, dict):
        return {key: _lasting(part) for key, part in value.items() if key not in OF_THE_MOMENT}
    if isinstance(value, list):
        rows = (row for row in value if not (isinstance(row, dict) and row.get("metric") in OF_THE_MOMENT))
        return [_lasting(row) for row in rows]
    return value


def kill_on_the_way(attempt: Attempt, blocks: list[int], steps: list[int]) -> list[dict[str, int]]:
    """Make the run, killed at each of these; returns how many blocks and steps were there each time."""
    seen = []
    reached: list[Callable[[], bool]] = [lambda count=count: attempt.blocks() >= count for count in sorted(blocks)]
    reached += [lambda step=step: attempt.step() >= step for step in sorted(steps)]
    for arrived in reached:
        process = attempt.start("--rerun-incomplete")
        while not arrived() and process.poll() is None:
            time.sleep(POLL_SECONDS)
        if process.poll() is not None:
            raise SystemExit(
                f"it ended before it could be killed ({len(seen)} kills done): {attempt.folder}/terminal.txt"
            )
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        seen.append({"blocks": attempt.blocks(), "step": attempt.step()})
        print(json.dumps(seen[-1]), flush=True)
        attempt.start("--unlock").wait()
    _end(attempt, attempt.start("--rerun-incomplete"))
    return seen


def _end(attempt: Attempt, process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise SystemExit(f"snakemake failed: {attempt.folder}/terminal.txt")


def main(arguments: list[str]) -> None:
    """Make both runs, compare them and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--run", required=True, help="as its folder below results/ is called")
    parser.add_argument("--configfile", nargs="+", required=True)
    parser.add_argument("--blocks", type=int, nargs="*", default=[])
    parser.add_argument("--steps", type=int, nargs="*", default=[])
    parser.add_argument("--folder", type=Path, help="where to work; else a new one among the temporary files")
    parser.add_argument("--snakemake", nargs=argparse.REMAINDER, default=[], help="the rest is for snakemake")
    told = parser.parse_args(arguments)
    folder = told.folder or Path(tempfile.mkdtemp(prefix="oaem-interrupted-"))
    configurations = [str(Path(path).resolve()) for path in told.configfile]
    options = ("--cores", "2", "--resources", "gpu=2", "--configfile", *configurations, *told.snakemake)
    alone, killed = (Attempt(folder.resolve() / name, told.run, options) for name in ("alone", "killed"))
    undisturbed = alone.start()
    try:
        kills = kill_on_the_way(killed, told.blocks, told.steps)
        _end(alone, undisturbed)
    finally:
        if undisturbed.poll() is None:  # in a process group of its own, it would outlive what went wrong here
            os.killpg(undisturbed.pid, signal.SIGTERM)
    wanted, found = alone.files(), killed.files()
    differ = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    tensors = sum(name.endswith(".safetensors") for name in wanted)
    result = {"run": told.run, "kills": kills, "files": len(wanted), "tensors": tensors, "differ": differ}
    print(json.dumps(result), flush=True)
    write_json(told.output, result)
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
