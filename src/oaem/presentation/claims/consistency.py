"""The paper checked against itself: its arithmetic, numbers that it gives twice, statements, and the model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oaem.presentation.claims import claims, reported
from oaem.presentation.tables.downstream import ACCURACIES

DOWNSTREAM = (7, 8, 9, 10, 11, 13, 15)


@dataclass(frozen=True)
class Fault:
    """An inconsistency of the paper."""

    id: str
    finding: str


def faults(paper_dir: Path | str) -> list[Fault]:
    """Every inconsistency between numbers that the paper (or its model card) reports."""
    return [*_arithmetic(paper_dir), *_repeated(paper_dir), *_model_card(paper_dir), *_statements(paper_dir)]


def agree(exact: float, slack: float, printed: float, decimals: int) -> bool:
    """Whether a number known up to `slack` may have been printed as `printed` with so many decimals."""
    return abs(exact - printed) <= slack + 0.5 * 10.0**-decimals + 1e-9


def _arithmetic(paper_dir: Path | str) -> list[Fault]:
    found = []
    for table in (f"table{number}" for number in DOWNSTREAM):
        for row in reported.rows(paper_dir, table):
            mean = sum(float(row[column]) for column in ACCURACIES) / len(ACCURACIES)
            if not agree(mean, 0.0005, float(row["avg"]), 3):
                finding = f"tasks average {mean:.4f}, printed {row['avg']}"
                found.append(Fault(f"{table}-{_slug(row['init'])}-average", finding))
    for row in reported.rows(paper_dir, "table2"):
        gap = float(row["pre_pv"]) - float(row["post_pv"])
        if not agree(gap, 0.01, float(row["gap"]), 2):
            where = f"table2-{_slug(row['init'])}-b{row['beam']}-e{row['epochs']}-gap"
            found.append(Fault(where, f"pre - post is {gap:.2f}, printed {row['gap']}"))
    for row in reported.rows(paper_dir, "table5"):
        greedy, oaem = float(row["baseline"]), float(row["oaem"])
        slack = 0.005 / oaem * (1 + greedy / oaem)
        if not agree(greedy / oaem, slack, float(row["ratio"]), 2):
            finding = f"greedy / OA-EM is {greedy / oaem:.3f}, printed {row['ratio']}"
            found.append(Fault(f"table5-{_slug(row['benchmark'])}-ratio", finding))
    return found


# The same quantity printed in two tables: (table, labels, column) twice.
Place = tuple[str, dict[str, Any], str]


def repeated_numbers() -> list[tuple[Place, Place]]:
    """Pairs of places that must hold the same number."""
    pairs: list[tuple[Place, Place]] = []
    points = [(4, 100), (8, 100), (16, 100), (8, 5)]
    for number, (beam, epochs) in zip((8, 9, 10, 11), points, strict=True):
        for init, column in (("Greedy", "greedy"), ("OA-EM", "oaem")):
            run = {"init": init, "beam": beam, "epochs": epochs}
            average: Place = (f"table{number}", {"init": init}, "avg")
            pairs += [
                (("table1", run, "wiki2"), ("table2", run, "pre_pv")),
                (("table1", run, "q_time"), ("table2", run, "q_time")),
                (("table16", run, "wiki2"), ("table2", run, "post_pv")),
                (("table16", run, "q_time"), ("table2", run, "q_time")),
                (("table16", run, "avg"), average),
                (("table3", {"model": "Llama 3B", "beam": beam, "epochs": epochs}, column), average),
            ]
    for init, column, label in (("Greedy", "greedy", "Baseline"), ("OA-EM", "oaem", "+ OA-EM")):
        run = {"init": init, "beam": 8, "epochs": 100}
        low, high = ({"model": "Llama 3B", "rate": rate} for rate in ("2 bpp", "3 bpp"))
        side = "baseline" if init == "Greedy" else "oaem"
        pairs += [
            (("table4", low, f"pre_{column}"), ("table2", run, "pre_pv")),
            (("table4", low, f"post_{column}"), ("table2", run, "post_pv")),
            (("table4", high, f"pre_{column}"), ("table6", {"init": label}, "wiki2")),
            (("table5", {"domain": "Far-OOD"}, side), ("table1", run, "wiki2")),
            (("table5", {"domain": "In-domain"}, side), ("table1", run, "c4")),
        ]
        for model, perplexity, downstream in (("Llama 8B", "table12", "table13"), ("Qwen 3B", "table14", "table15")):
            row = {"model": model, "rate": "2 bpp"}
            pairs += [
                (("table4", row, f"pre_{column}"), (perplexity, {"init": init}, "pre_wiki2")),
                (("table4", row, f"post_{column}"), (perplexity, {"init": init}, "post_wiki2")),
                (("table3", {"model": model, "beam": 8, "epochs": 100}, column), (downstream, {"init": init}, "avg")),
            ]
    return [*pairs, (("table1", {"init": "FP16"}, "wiki2"), ("table6", {"init": "FP16"}, "wiki2"))]


def _repeated(paper_dir: Path | str) -> list[Fault]:
    found = []
    for first, second in repeated_numbers():
        values = [reported.value(paper_dir, *place) for place in (first, second)]
        if values[0] != values[1]:
            where = "-".join([first[0], second[0], *(_slug(str(label)) for label in first[1].values()), first[2]])
            found.append(Fault(where, f"{values[0]} in {first[0]}, {values[1]} in {second[0]}"))
    return found


def _model_card(paper_dir: Path | str) -> list[Fault]:
    found = []
    for row in reported.settings(paper_dir):
        if row["paper"] and row["model_card"] and row["paper"] != row["model_card"]:
            finding = f"{row['paper']} in section {row['section']}, {row['model_card']} in the model card"
            found.append(Fault(f"model-card-{_slug(row['setting'])}", finding))
    for row in reported.model_card(paper_dir):
        run: dict[str, str | int | None] = {"init": row["init"], "beam": None, "epochs": None}
        if row["init"] != "FP16":
            run |= {"beam": 4, "epochs": 100}
        for column, text in row.items():
            if column == "init" or not text:
                continue
            place: Place = ("table8", {"init": row["init"]}, column)
            if column in ("pre_pv", "post_pv"):
                place = ("table1", run, "wiki2") if column == "pre_pv" else ("table2", run, column)
            printed = reported.value(paper_dir, *place)
            if printed != float(text):
                found.append(Fault(f"model-card-{_slug(row['init'])}-{column}", f"{text}, but {printed} in {place[0]}"))
    return found


def _statements(paper_dir: Path | str) -> list[Fault]:
    cells = claims.paper_cells(paper_dir)
    decided = [(claim, *claims.decide(claim, cells)) for claim in claims.load(paper_dir)]
    return [Fault(f"claim-{claim.id}", evidence) for claim, verdict, evidence in decided if verdict == "fails"]


def _slug(text: str) -> str:
    return "".join(character.lower() if character.isalnum() else "-" for character in text).strip("-")
