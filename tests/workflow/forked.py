"""Snakemake whose scripts are forked from a process that has the library imported: 0.2 s of processor time, not 3.

What runs is the file that Snakemake writes for the job, preamble and all, in a process of its own. Only the interpreter
is not fresh; so that a script cannot lean on what another one imports, each also runs in a fresh one in some test.

Where the library of another tree or other packages must be found, `python -m tests.workflow.forked` is snakemake with
one fresh interpreter for itself and all its scripts.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import AF_UNIX, socket
from socketserver import ForkingMixIn, StreamRequestHandler, UnixStreamServer
from typing import Any

# What a script imports that costs time.
LIBRARY = (
    "oaem.calibration.sequential", "oaem.evaluation.domains", "oaem.evaluation.stages", "oaem.models.source",
    "oaem.planning.rules", "oaem.presentation.figures.figures", "oaem.presentation.report", "oaem.pv.job",
)  # fmt: skip


class Script(StreamRequestHandler):
    """One job, in a process that the server has forked for it: asked with a file, answered with its exit code."""

    def handle(self) -> None:
        asked = json.loads(self.rfile.readline())
        self.wfile.write(f"{os.getpid()}\n".encode())
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        code = 0
        try:
            runpy.run_path(asked["file"], run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        sys.stdout.flush()
        self.wfile.write(f"{code}\n".encode())


class Server(ForkingMixIn, UnixStreamServer):
    """Forks for every request, and ends with the snakemake that it serves."""

    max_children = 1000  # as many as snakemake starts at once
    snakemake: int

    def service_actions(self) -> None:
        super().service_actions()
        if os.getppid() != self.snakemake:
            os._exit(0)


@contextmanager
def forked_scripts(fresh: Collection[str] = ()) -> Iterator[None]:
    """Let the snakemake of this process, which has no threads yet, fork its scripts; not those of the rules `fresh`."""
    from snakemake.benchmark import benchmarked
    from snakemake.script import PythonScript

    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "scripts")
        server = Server(address, Script)
        server.snakemake = os.getpid()
        process = os.fork()
        if process == 0:
            server.serve_forever()
        server.socket.close()

        started = PythonScript.execute_script

        def execute(script: Any, file: str, edit: bool = False) -> None:
            if script.rulename in fresh:
                return started(script, file, edit)
            with socket(AF_UNIX) as client:
                client.connect(address)
                asked = {"file": file, "folder": str(Path.cwd()), "environment": dict(os.environ)}
                client.sendall(json.dumps(asked).encode() + b"\n")
                answer = client.makefile()
                with benchmarked(int(answer.readline()), script.bench_record):
                    code = int(answer.readline() or 1)
            if code:
                raise subprocess.CalledProcessError(code, f"python {file}")

        PythonScript.execute_script = execute
        try:
            yield
        finally:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def main() -> None:
    """Import the library of the tree that this is started in, then run snakemake with the arguments of this process."""
    from snakemake.cli import main as snakemake

    sys.path.insert(0, str(Path.cwd() / "src"))
    for name in LIBRARY:
        importlib.import_module(name)
    with forked_scripts():
        snakemake()


if __name__ == "__main__":
    main()
