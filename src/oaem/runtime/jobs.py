"""How a job of the workflow runs: its log, its one clear message on failure, its device."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oaem.errors import UserError
from oaem.runtime.devices import claim_device
from oaem.runtime.heap import keep_freed_memory

log = logging.getLogger("oaem")


def run_job(snakemake: Any, work: Callable[[Any], None]) -> None:
    """Run `work(snakemake)` with logging to the job's log file and to the terminal.

    A UserError ends the job with its message alone. Anything else is a fault of this project: its traceback goes to
    the log, and the terminal is told where to find it.
    """
    path = Path(str(snakemake.log[0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    _configure(path)
    try:
        work(snakemake)
    except UserError as error:
        log.error("%s", error)
        _exit()
    except MemoryError:
        log.error("out of memory: run fewer jobs at once (--cores 1), or take a smaller window or batch size.")
        _exit()
    except Exception as error:
        if _is_cuda_memory(error):
            log.error("the GPU is out of memory: %s. Use a GPU with more memory, or smaller batches.", error)
            _exit()
        log.debug("unexpected failure", exc_info=True)
        log.error("unexpected %s: %s (traceback in %s)", type(error).__name__, error, path)
        _exit()


@contextmanager
def job_device(wanted: str, threads: int) -> Iterator[str]:
    """A torch device for the body of the block, with `threads` CPU threads; GPUs are shared out across the machine."""
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()
    locks = Path(tempfile.gettempdir()) / f"oaem-gpus-{os.getuid()}"
    with claim_device(wanted, locks) as device:
        log.debug("device %s, %d threads", device, threads)
        yield device


def _exit() -> None:
    logging.shutdown()
    sys.exit(1)


def _is_cuda_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


def _configure(path: Path) -> None:
    """Everything to the log file; what a person wants to see to the terminal."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    file = logging.FileHandler(path, mode="a", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("  %(message)s"))
    terminal.setLevel(logging.INFO)
    root.handlers = [file]
    log.setLevel(logging.DEBUG)
    log.handlers = [terminal]
