"""A job of several processes, its ranks: torchrun starts one for each device, and one message tells how they ended.

The job waits while its ranks work. If one fails or dies, torchrun ends the others, and the job says what happened. If
the job dies, however it dies, its ranks die with it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from oaem.errors import UserError
from oaem.runtime.atomic import read_json, write_json
from oaem.runtime.heap import keep_freed_memory
from oaem.runtime.jobs import GO_ON, USE_LESS, failure_of, start_log

log = logging.getLogger("oaem")
TOLD, SAID = "told.json", "said-{}.json"
# What torchrun takes for itself while it runs.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
# Torchrun asks the others of a rank that failed to end, and much later it kills them: that is no failure of theirs.
SECONDS_OF_GRACE = 10
PR_SET_PDEATHSIG = 1
LOOPBACK = Path("/sys/class/net/lo")


def run_ranks(module: str, told: Mapping[str, Any], devices: Sequence[str], threads: int, path: Path) -> None:
    """Run `python -m module` once for each device and wait; the module calls `be_rank`, which hands it `told`.

    threads: CPU threads of each. path: the job's log, to which all ranks write. UserError with the one message that
    tells why if a rank fails. A signal that ends the job ends its ranks first.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    _prepare(threads)
    ended_by = failed = None
    with TemporaryDirectory(prefix="oaem-ranks-") as name, _handlers_kept():
        folder = Path(name)
        job = {"parent": os.getpid(), "log": str(path), "devices": list(devices), "threads": threads, "told": told}
        write_json(folder / TOLD, job)
        # A free port of this host, whose own name need not resolve. No second try: that is Snakemake's matter.
        how = ["--standalone", "--local-addr=localhost", f"--nproc-per-node={len(devices)}", "--max-restarts=0"]
        log.debug("%d ranks on %s, %d threads each", len(devices), ", ".join(devices), threads)
        try:
            run(parse_args([*how, f"--log-dir={folder / 'torchrun'}", "--module", module, name]))
        except ChildFailedError as error:
            first = min(failure.timestamp for failure in error.failures.values())
            soon = {rank: each for rank, each in error.failures.items() if each.timestamp - first < SECONDS_OF_GRACE}
            failed = _why(folder, {rank: failure.exitcode for rank, failure in soon.items()}, len(devices))
        except SignalException as error:
            ended_by = error.sigval
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt
    if ended_by is not None:
        os.kill(os.getpid(), ended_by)
    if failed is not None:
        raise UserError(failed)


def be_rank(work: Callable[[Any, str], None]) -> None:
    """The life of a rank that `run_ranks` started: `work(told, device)`, and word of its failure to the job."""
    folder, rank = Path(sys.argv[-1]), int(os.environ["RANK"])
    job = read_json(folder / TOLD)
    _die_with(job["parent"])
    path, device = Path(job["log"]), job["devices"][int(os.environ["LOCAL_RANK"])]
    start_log(path, to_terminal=rank == 0)
    failure = failure_of(lambda: _work(work, job, device), path)
    if failure is None:
        return
    try:
        write_json(folder / SAID.format(rank), {"when": time.time(), **vars(failure)})
        logging.shutdown()
    finally:
        os._exit(1)  # what is closed at a normal exit would wait for the other ranks


def _work(work: Callable[[Any, str], None], job: dict[str, Any], device: str) -> None:
    import torch

    torch.set_num_threads(job["threads"])
    keep_freed_memory()
    log.debug("rank %s, process %d, on %s", os.environ["RANK"], os.getpid(), device)
    work(job["told"], device)


def _why(folder: Path, codes: Mapping[int, int], ranks: int) -> str:
    """The one message of ranks that ended with these exit codes, below zero by a signal.

    When one rank is gone the others fail, too, for want of it. So what comes first is what a user can mend, then a rank
    that a signal ended, unless torchrun sent it, then whatever happened first.
    """
    files = (folder / SAID.format(rank) for rank in range(ranks))
    said = sorted((read_json(file) for file in files if file.exists()), key=lambda each: each["when"])
    mendable = [each for each in said if each["mendable"]]
    if mendable:
        return str(mendable[0]["message"])
    dead = {rank: signal.Signals(-code) for rank, code in codes.items() if code < 0}
    struck = {rank: sign for rank, sign in dead.items() if sign != signal.SIGTERM} or (dead if not said else {})
    if struck:
        rank, sign = min(struck.items())
        how = f"crashed ({sign.name}; the log shows where)" if sign in CRASHES else f"was killed ({sign.name})"
        return (
            f"rank {rank} of {ranks} {how}, and the others were stopped. Most often memory ran out: {USE_LESS}. On a "
            f"cluster it may have been a limit (mem_mb, runtime) or somebody's cancel. {GO_ON}"
        )
    return str(said[0]["message"]) if said else f"ranks ended with exit codes {codes} and did not say why"


def _prepare(threads: int) -> None:
    """What torchrun and the ranks find in this process: an environment, and a log that is the job's file alone."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # Multicast in the switch would serve sums on their way, which nobody asks for; some machines offer it in vain.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    if LOOPBACK.exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK.name)
    for name in ("torch", "torch.distributed"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """This process's signal handlers are afterwards what they were."""
    before = {sign: signal.getsignal(sign) for sign in SIGNALS}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def _die_with(parent: int) -> None:
    """Let the kernel end this process with its parent, whose hold on a run's folder ends then, too; and on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        log.debug("this system does not end ranks with their job")
    if os.getppid() != parent:
        os._exit(1)
