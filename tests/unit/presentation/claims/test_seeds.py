"""Verdicts by several seeds, on invented tables."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from oaem.config import schema as configuration
from oaem.presentation.claims import claims
from oaem.presentation.claims.claims import TableCells
from oaem.presentation.claims.seeds import EVERY_SEED, INTERVAL, ONE_SEED, judge
from tests.unit.presentation.paper_metrics import PAPER, invented, values

PLAIN = 'cell("t", column="ppl", init="OA-EM") < cell("t", column="ppl", init="Greedy")'
BOTH = f'{PLAIN} and cell("t", column="ppl", init="OA-EM") > 1'
LOWER = ([157.0, 170.0, 183.0], [409.0, 500.0, 708.0])


def grid(oaem: Sequence[float | str], greedy: Sequence[float]) -> dict[int, TableCells]:
    """A table of two rows for each seed."""

    def cells(ours: float | str, theirs: float) -> TableCells:
        rows = [({"init": "OA-EM"}, {"ppl": ours}), ({"init": "Greedy"}, {"ppl": theirs})]
        return TableCells(lambda table: rows)

    return {42 + index: cells(*pair) for index, pair in enumerate(zip(oaem, greedy, strict=True))}


@pytest.mark.parametrize(
    ("oaem", "greedy", "verdict"),
    [
        (*LOWER, "holds"),
        (LOWER[1], LOWER[0], "fails"),
        # Lower with every seed, but by so different an amount that the interval includes equality.
        ([99.0, 90.0, 60.0], [100.0, 100.0, 100.0], "undecided"),
        # Pairing matters: seeds differ by far more than the two of one seed.
        ([10.0, 100.0, 1000.0], [11.0, 111.0, 1105.0], "holds"),
        ([10.0, 100.0], [11.0, 110.1], "holds"),
    ],
)
def test_a_plain_comparison_is_judged_by_its_interval(oaem: list[float], greedy: list[float], verdict: str) -> None:
    found = judge(PLAIN, 0.0, grid(oaem, greedy))
    assert (found.verdict, found.rule, found.seeds) == (verdict, INTERVAL, len(oaem))


def test_any_row_that_fails_fails_a_statement_about_all() -> None:
    statement = 'all(column("t", "ppl") < 200)'
    assert judge(statement, 0.0, grid([100.0, 101.0, 102.0], [300.0, 301.0, 302.0])).verdict == "fails"
    assert judge(statement, 0.0, grid([100.0, 101.0, 102.0], [110.0, 111.0, 112.0])).verdict == "holds"
    assert judge(statement, 0.0, grid([100.0, 101.0, 102.0], [190.0, 199.0, 250.0])).verdict == "undecided"


@pytest.mark.parametrize(
    ("oaem", "greedy", "verdict"),
    [
        (*LOWER, "holds"),
        (LOWER[1], LOWER[0], "fails"),
        ([99.0, 90.0, 60.0], [100.0, 100.0, 100.0], "holds"),
        ([99.0, 90.0, 160.0], [100.0, 100.0, 100.0], "undecided"),
        ([99.0, 90.0], [100.0, 100.0], "undecided"),
    ],
)
def test_another_statement_needs_three_seeds_that_agree(oaem: list[float], greedy: list[float], verdict: str) -> None:
    found = judge(BOTH, 0.0, grid(oaem, greedy))
    assert (found.verdict, found.rule, found.seeds) == (verdict, EVERY_SEED, len(oaem))


def test_distances_from_a_quoted_number_have_no_interval() -> None:
    quoted = 'abs(cell("t", column="ppl", init="OA-EM") - 170) <= tol'
    found = judge(quoted, 20.0, grid(*LOWER))
    assert (found.verdict, found.rule) == ("holds", EVERY_SEED)


def test_a_grid_of_one_seed_says_so() -> None:
    found = judge(PLAIN, 0.0, grid([157.0], [409.0]))
    assert (found.verdict, found.rule, found.seeds) == ("holds", ONE_SEED, 1)


@pytest.mark.parametrize("statement", [PLAIN, BOTH])
def test_one_seed_of_several_decides_nothing(statement: str) -> None:
    found = judge(statement, 0.0, grid([157.0, "not run", "not run"], [409.0, 500.0, 600.0]))
    assert (found.verdict, found.seeds) == ("undecided", 1)
    assert "1 of 3 seeds, too few" in found.words
    nothing = judge(statement, 0.0, grid(["not run"] * 3, [1.0, 2.0, 3.0]))
    assert (nothing.verdict, nothing.seeds) == ("undecided", 0)
    assert "not run" in nothing.words


def test_evidence_is_read_and_kept_as_comparisons() -> None:
    found = judge(PLAIN, 0.0, grid(*LOWER))
    assert found.words.startswith("OA-EM 157 to 183, greedy 409 to 708 [paired ratio 0.3")
    assert found.evidence == "seed 42: 157 < 409 | seed 43: 170 < 500 | seed 44: 183 < 708"
    assert "not so" in judge(PLAIN, 0.0, grid(LOWER[1], LOWER[0])).words
    assert "so with 2 of 3 seeds" in judge(BOTH, 0.0, grid([99.0, 90.0, 160.0], [100.0] * 3)).words


@pytest.mark.parametrize("seeds", [[42], [42, 43, 44]])
def test_claims_name_rule_and_seeds(seeds: list[int]) -> None:
    changed = values("embedded-ten-runs.yaml")
    for part in changed["grid"]:
        part["seeds"] = seeds
    config = configuration.parse(changed)
    built = claims.build(invented(config), config, PAPER).set_index("id")
    decided = built[built["ours"].isin(["holds", "fails", "shown"])]
    assert set(decided["seeds"]) == {len(seeds)}
    assert set(decided["rule"]) == ({ONE_SEED} if len(seeds) == 1 else {INTERVAL, EVERY_SEED})
    assert built.loc["pre-pv-every-budget", "ours"] == "holds"
    for words in decided["ours_in_words"]:
        assert "True" not in words and "False" not in words and "schedule" not in words and "column" not in words


def test_words_of_every_claim_of_the_paper_are_words() -> None:
    """No machine form in what a person reads of the paper's own numbers."""
    config = configuration.load(PAPER.parent / "config/paper.yaml")
    for row in claims.build(invented(config), config, PAPER).itertuples():
        for mark in ("True", "False", "column", "cell(", "tol", "e-1"):
            assert row.paper == "undecided" or mark not in row.paper_in_words, row.id
