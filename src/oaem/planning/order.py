"""Which of the jobs that could run now goes first: what the first table needs, and there what others wait for longest.

A priority is a number for Snakemake, which starts the job with the highest one; it changes no result.
"""

from __future__ import annotations

from oaem.config.grid import Run
from oaem.config.schema import Config
from oaem.planning import cost, layout, shapes
from oaem.planning.rules import table_inputs

# What a reader sees first, and by how much its jobs are ahead of all others.
FIRST_TABLE, FIRST = "table1", 100
# In this order, and the longest quantisation first. Of all orders of these kinds of jobs this one had the first table
# of the default grid ready soonest on two cores, by a simulation with measured times.
MODEL, TEXT, QUANTISATION, UNQUANTISED, CHECK, TUNING, MEASUREMENT, TABLE = 70, 60, 50, 40, 30, 20, 10, 0


class Order:
    """The priorities of a grid's jobs."""

    def __init__(self, config: Config) -> None:
        self.config = config
        files = set() if config.from_archive is not None else set(table_inputs(config, FIRST_TABLE))
        models = {run.model for run in config.runs()}
        self.first = {
            *(run.path for run in config.runs() if layout.metric(run.path, "pre_pv", "perplexity") in files),
            *(f"models/{name}" for name in models if layout.metric(f"models/{name}", "fp16", "perplexity") in files),
        }
        self.seconds = {run.path: self._seconds(run) for run in config.runs()}

    def model(self, model: str) -> float:
        """Of fetching a model."""
        return self._ahead(f"models/{model}") + MODEL

    def text(self, model: str, name: str) -> float:
        """Of a token set, a calibration stream or the gate of a model: calibration before what is read later."""
        early = 1 if name.startswith("calibration") else 0
        return (0 if name.startswith("pv-") else self._ahead(f"models/{model}")) + TEXT + early

    def quantization(self, run: str, start: int) -> float:
        """Of a quantisation that begins at block `start`: by its share of the longest way to a run's last block."""
        count = layout.block_count(self.config, Run.parse(run).model)
        left = self.seconds.get(run, 0.0) * (count - start) / count
        return self._ahead(run) + QUANTISATION + 5 * left / max(self.seconds.values())

    def check(self, run: str) -> float:
        """Of putting a run's blocks together."""
        return self._ahead(run) + CHECK

    def measurement(self, subject: str, stage: str) -> float:
        """Of a perplexity; the unquantised model's is as urgent as text where a gate waits for it."""
        if stage != "fp16":
            return (self._ahead(subject) if stage == "pre_pv" else 0) + MEASUREMENT
        gated = self.config.models[layout.subject_model(subject)].expected_perplexity
        return self._ahead(subject) + (TEXT if gated else UNQUANTISED)

    def table(self, name: str) -> float:
        """Of a table."""
        return (FIRST if name == FIRST_TABLE else 0) + TABLE

    def _ahead(self, subject: str) -> float:
        return FIRST if subject in self.first else 0

    def _seconds(self, run: Run) -> float:
        """What quantising a run takes, as the plan reckons."""
        reference = cost.CPU if self.config.device == "cpu" else cost.H200
        each = cost.block_seconds(self.config, run, shapes.planned(self.config, run.model), reference)
        return sum(each.values()) * layout.block_count(self.config, run.model)
