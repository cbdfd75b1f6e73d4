"""What of a results folder is published: `python -m oaem.evaluation.archive RESULTS TARGET`.

TARGET gets metrics.csv, every measurement that is there, of a grid that was run in part, too; exchange.csv and
directions.csv, where runs were compared layer by layer (`inquiry` says what is in them); and manifests.json, by run or
model: what made each of these, and the checksums of the run's blocks with what made them. No weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from oaem.errors import UserError
from oaem.evaluation.inquiry import write_tables
from oaem.measurements.table import of_rows, write_csv
from oaem.planning.layout import INQUIRIES
from oaem.runtime.atomic import read_json, write_json


def archive(results: Path, target: Path) -> int:
    """Write the files of `target` and return the number of measurements in its metrics.csv.

    UserError if `results` holds no measurement, a file in it is damaged, or `target` is there already: what is
    published does not change.
    """
    if target.exists():
        raise UserError(f"{target}: is there already; give the archive another name, for example with today's date.")
    measured: dict[Path, dict[str, Any]] = {}
    for kind in ("models", "runs"):
        for path in sorted((results / kind).rglob("metrics/*.json")):
            measured[path] = read_json(path)
    if not measured:
        raise UserError(f"{results}: no measurements below {results}/runs or {results}/models; is it a results folder?")
    manifests: dict[str, dict[str, Any]] = {}
    for path, found in measured.items():
        subject = manifests.setdefault(path.parent.parent.relative_to(results).as_posix(), {"measured": {}})
        subject["measured"][path.stem] = found["provenance"]
    for name, subject in manifests.items():
        checked = results / name / "quantized.json"
        if checked.exists():
            whole = read_json(checked)
            subject["quantized"] = {key: whole[key] for key in ("fingerprint", "provenance", "sha256")}
    compared = {
        kind: [row for path, found in measured.items() if path.stem == kind for row in found["metrics"]]
        for kind in INQUIRIES
    }
    table = of_rows(row for path, found in measured.items() if path.stem not in INQUIRIES for row in found["metrics"])
    write_json(target / "manifests.json", manifests)
    write_tables(target, compared)
    write_csv(target / "metrics.csv", table)
    return len(table)


def main(arguments: list[str]) -> None:
    """The command line: a folder of results and the archive's."""
    if len(arguments) != 2:
        sys.exit("python -m oaem.evaluation.archive RESULTS TARGET, for example: results archive/evidence-2026-12-01")
    results, target = map(Path, arguments)
    try:
        count = archive(results, target)
    except UserError as error:
        sys.exit(f"archive: {error}")
    print(f"{target}: {count} measurements")


if __name__ == "__main__":
    main(sys.argv[1:])
