"""Check that all blocks of a run are there and agree, and put down what quantising them took."""

import shutil
from pathlib import Path
from typing import Any

from oaem.calibration.reports import check_blocks, read_range
from oaem.config.grid import Run
from oaem.evaluation.metrics import write_metrics
from oaem.evaluation.quantization import quantization_metrics
from oaem.runtime.atomic import write_json
from oaem.runtime.jobs import run_job
from oaem.runtime.temporary import sweep


def work(snakemake: Any) -> None:
    ranges = [read_range(Path(path)) for path in snakemake.input.ranges]
    manifest = Path(snakemake.output.manifest)
    reports = [report for made in ranges for report in made["blocks"]]
    check_blocks(manifest.parent / "blocks", reports)
    made_by = ranges[-1]["provenance"]
    run = Run.parse(snakemake.wildcards.run)
    peak_bytes = max((made["peak_bytes"] for made in ranges if made.get("peak_bytes")), default=None)
    write_metrics(snakemake.output.metrics, quantization_metrics(run, reports, made_by["device"], peak_bytes), made_by)
    sums = {f"{report['block']:04d}": report["sha256"] for report in reports}
    write_json(manifest, {"fingerprint": ranges[-1]["fingerprint"], "sha256": sums, "provenance": made_by})
    shutil.rmtree(manifest.parent / "activations", ignore_errors=True)
    sweep(manifest.parent / "blocks")


if "snakemake" in globals():
    run_job(snakemake, work)
