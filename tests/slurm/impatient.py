"""Snakemake that asks SLURM every second: `python -m tests.slurm.impatient`, with the arguments of snakemake.

The executor waits ten seconds longer after each answer without news, up to three minutes, which suits jobs of hours; no
setting says otherwise.
"""

from __future__ import annotations

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor


class EverySecond:
    """What the executor takes for its next pause, whatever it writes there."""

    def __get__(self, instance: object, owner: type) -> int:
        return 1

    def __set__(self, instance: object, value: float) -> None:
        pass


if __name__ == "__main__":
    RemoteExecutor.next_seconds_between_status_checks = EverySecond()  # type: ignore[assignment]
    main()
