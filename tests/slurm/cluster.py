"""A real SLURM on this machine: one node with two fake GPUs that schedule like real ones.

No systemd, no cgroups, no accounting. The node claims more memory and cores than the machine has, so that jobs ask for
what they would ask for on a cluster. Several test processes share one cluster: the first starts it, the last stops it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PACKAGES = ["munge", "slurm-client", "slurmctld", "slurmd"]
DAEMONS = {"munged", "slurmctld", "slurmd"}
MARKER = "# Written by the tests of oaem; safe to delete."
ETC = Path("/etc/slurm")
HOME = Path(tempfile.gettempdir()) / "oaem-slurm-tests"
HOST = os.uname().nodename.split(".")[0]

SLURM_CONF = f"""{MARKER}
ClusterName=oaem
SlurmctldHost={HOST}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
EnforcePartLimits=ALL
MinJobAge=3600
KillWait=2
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
StateSaveLocation={HOME}/ctld
SlurmdSpoolDir={HOME}/slurmd
SlurmctldPidFile={HOME}/slurmctld.pid
SlurmdPidFile={HOME}/slurmd.pid
SlurmctldLogFile={HOME}/slurmctld.log
SlurmdLogFile={HOME}/slurmd.log
NodeName={HOST} NodeAddr=127.0.0.1 CPUs=8 RealMemory=262144 Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES_CONF = f"""{MARKER}
AutoDetect=off
NodeName={HOST} Name=gpu File=/dev/null
NodeName={HOST} Name=gpu File=/dev/zero
"""


class UnavailableError(Exception):
    """Why there can be no cluster here, in one line."""


@contextmanager
def cluster() -> Iterator[None]:
    """The cluster, up for the body of the block; UnavailableError where it may not be installed."""
    refuse_where_not_ours()
    HOME.mkdir(exist_ok=True)
    with (HOME / "starting").open("w") as starting, (HOME / "users").open("w") as users:
        # Nobody else is starting or stopping it while `starting` is held; `users` is shared by all that use it.
        with locked(starting):
            first = alone(users)
            fcntl.flock(users, fcntl.LOCK_SH)
            if first:
                stop()  # what a killed test run may have left behind
                install()
                try:
                    start()
                except BaseException:
                    stop()
                    raise
        try:
            yield
        finally:
            with locked(starting):
                if alone(users):
                    stop()


@contextmanager
def locked(file: IO[str]) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def alone(users: IO[str]) -> bool:
    """Whether no other process uses the cluster."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def refuse_where_not_ours() -> None:
    """UnavailableError unless this is a place where packages and a configuration in /etc may come and go."""
    if os.geteuid() != 0:
        raise UnavailableError("installing SLURM needs root")
    if Path("/run/systemd/system").exists():
        raise UnavailableError("systemd runs here, so this is no throw-away container: not installing SLURM on it")
    for path in (ETC / "slurm.conf", ETC / "gres.conf"):
        if path.exists() and not path.read_text(encoding="utf-8").startswith(MARKER):
            raise UnavailableError(f"a SLURM is configured on this machine ({path}): not touching it")
    if "SLURM_CONF" in os.environ or "SLURM_JOB_ID" in os.environ:
        raise UnavailableError("the environment belongs to another SLURM (SLURM_CONF, SLURM_JOB_ID): not touching it")
    ours = (ETC / "slurm.conf").exists()
    if not ours and shutil.which("sinfo") and command("sinfo", "-h").returncode == 0:
        raise UnavailableError("a SLURM answers on this machine: not touching it")


def install() -> None:
    """Install what is missing with apt-get; UnavailableError if that cannot be."""
    if all(shutil.which(name) for name in ("munged", "sbatch", "slurmctld", "slurmd")):
        return
    if shutil.which("apt-get") is None:
        raise UnavailableError("SLURM is not installed, and there is no apt-get to install it with")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    steps = (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES])
    for step in steps:
        done = subprocess.run(["apt-get", *step], env=quiet, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise UnavailableError(
            f"SLURM cannot be installed: {(done.stderr.strip().splitlines() or ['apt-get failed'])[-1]}"
        )


def start() -> None:
    """Write the configuration, start the daemons and wait until the node is idle."""
    for folder in (HOME / "ctld", HOME / "slurmd"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    ETC.mkdir(exist_ok=True)
    (ETC / "slurm.conf").write_text(SLURM_CONF, encoding="utf-8")
    (ETC / "gres.conf").write_text(GRES_CONF, encoding="utf-8")
    started: list[int] = []
    if not munge_answers():
        runtime = Path("/run/munge")
        runtime.mkdir(mode=0o755, exist_ok=True)
        shutil.chown(runtime, "munge", "munge")
        launch(started, "runuser", "-u", "munge", "--", "munged", "--foreground", "--force")
        wait_until(munge_answers, 20, "munged does not answer")
    launch(started, "slurmctld", "-D", "-c")
    launch(started, "slurmd", "-D", "-N", HOST)
    wait_until(lambda: command("sinfo", "-h", "-o", "%T").stdout.strip() == "idle", 60, "the node does not get idle")


def launch(started: list[int], *arguments: str) -> None:
    """Start a daemon in a session of its own, so that an interrupted test run can still use it while it cleans up."""
    with (HOME / "daemons.log").open("a") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    started.append(process.pid)
    (HOME / "pids.json").write_text(json.dumps(started), encoding="utf-8")


def stop() -> None:
    """End all jobs and exactly the daemons that `start` started, and take the configuration away."""
    pids = [pid for pid in recorded_pids() if is_daemon(pid)]
    if pids and command("sinfo", "-h").returncode == 0:
        command("scancel", "--user", "root")
        with suppress(RuntimeError):
            wait_until(lambda: not command("squeue", "-h").stdout.strip(), 20, "jobs do not end")
    for pid in reversed(pids):
        end(pid)
    for name in ("slurm.conf", "gres.conf"):
        (ETC / name).unlink(missing_ok=True)
    (HOME / "pids.json").unlink(missing_ok=True)


def end(pid: int) -> None:
    """SIGTERM, and SIGKILL after ten seconds."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(pid, sign)
        deadline = time.monotonic() + 10
        while is_daemon(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        with suppress(ChildProcessError):  # a worker that stops what another started is not its parent
            os.waitpid(pid, os.WNOHANG)
        if not is_daemon(pid):
            return


def recorded_pids() -> list[int]:
    try:
        return [int(pid) for pid in json.loads((HOME / "pids.json").read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return []


def is_daemon(pid: int) -> bool:
    """Whether `pid` is a live daemon of ours; numbers come round again."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(Path(word.decode(errors="replace")).name in DAEMONS for word in words)


def munge_answers() -> bool:
    return command("munge", "-n").returncode == 0


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a SLURM client."""
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60)


def wait_until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Wait for `condition()`; RuntimeError if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{otherwise} within {seconds:.0f} s; the logs are in {HOME}")
        time.sleep(0.1)
