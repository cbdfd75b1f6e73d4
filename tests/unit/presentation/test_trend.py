"""Words about a sweep of rho: each is recomputed from invented ratios."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from oaem.presentation.trend import Rung, Tally, Trend

FAR = ("pre_pv", "far")
NAMES = ("12 bit over 12", "8 bit over 8", "6 bit over 6", "3 bit over 3")


RHOS = (0.001, 1.0, 20.0, 3000.0)


def sweep(*ratios: dict[int, float], bits: tuple[float, ...] = (5.1, 2.15, 2.05, 2.02)) -> Trend:
    return Trend(
        [
            Rung(name, 2.0, true_bits, {"greedy": 0.02, "oaem": 0.02 + 0.001 * index}, {FAR: by_seed}, rho)
            for index, (name, true_bits, by_seed, rho) in enumerate(zip(NAMES, bits, ratios, RHOS, strict=True))
        ]
    )


GROWING = sweep({1: 0.9, 2: 0.88}, {1: 1.0, 2: 1.05, 3: 1.3}, {1: 1.2, 2: 1.21}, {1: 2.0, 2: 1.2})
FALLING = sweep({1: 2.0, 2: 2.1}, {1: 1.5, 2: 1.6}, {1: 1.1, 2: 1.2}, {1: 0.9, 2: 0.901})
PEAKED = sweep({1: 0.9, 2: 0.91}, {1: 1.5, 2: 1.49}, {1: 1.4, 2: 1.3}, {1: 1.1, 2: 1.0})


def test_steps_are_counted_in_the_mean_and_by_seed() -> None:
    assert GROWING.steps(*FAR) == "3 of 3 (3, 2)", "the third seed of one rung has no partner on the others"
    assert FALLING.steps(*FAR) == "0 of 3 (0, 0); largest at 12 bit over 12"
    assert PEAKED.steps(*FAR) == "1 of 3 (1, 1); largest at 8 bit over 8"
    assert [each.growing_texts("pre_pv", ["far"]) for each in (GROWING, PEAKED)] == ["1 of 1 text", "0 of 1 text"]


def test_rungs_without_a_seed_in_common_are_compared_in_the_mean_alone() -> None:
    apart = sweep({1: 0.9}, {2: 1.0}, {3: 1.2}, {4: 2.0})
    assert apart.steps(*FAR) == "3 of 3 (no seed in common)"


def test_a_tally_counts_means_seeds_and_intervals() -> None:
    above, below, around, alone = {1: 1.2, 2: 1.2}, {1: 0.8, 2: 0.8}, {1: 0.9, 2: 1.3}, {1: 1.1}
    tally = Tally([above, below, around, alone])
    assert tally.won == 3, "the geometric mean of 0.9 and 1.3 is 1.08"
    assert tally.words == "3 of 4 comparisons, with every seed in 2"
    assert tally.pairs == "4 of 7"
    assert tally.intervals == "1 above 1, 1 below 1 and 1 around it"


def test_above_and_below_are_by_students_interval() -> None:
    for trend in (GROWING, FALLING, PEAKED):
        above, below = [], []
        for rung in trend.rungs:
            logs = [math.log(ratio) for ratio in rung.ratios[FAR].values()]
            low, high = stats.t.interval(0.95, len(logs) - 1, sum(logs) / len(logs), stats.sem(logs))
            above += [rung.name] if low > 0 else []
            below += [rung.name] if high < 0 else []
        assert trend.above(*FAR) == (", ".join(above) or "none")
        assert trend.below(*FAR) == (", ".join(below) or "none")
    assert FALLING.above(*FAR) != "none" != FALLING.below(*FAR)


def test_ends_are_paired_by_seed() -> None:
    over = GROWING.ends(*FAR)
    logs = [math.log(2.0 / 0.9), math.log(1.2 / 0.88)]
    low, high = stats.t.interval(0.95, 1, sum(logs) / 2, stats.sem(logs))
    assert (over.mean, over.low, over.high) == tuple(
        pytest.approx(math.exp(value)) for value in (sum(logs) / 2, low, high)
    )


def test_wins_bits_and_errors_are_counted() -> None:
    assert GROWING.wins("pre_pv", ["far"]) == "3 of 4 comparisons, with every seed in 2"
    assert [rung.name for rung in GROWING.heavy()] == ["12 bit over 12"]
    assert [GROWING.bits(), GROWING.light().bits()] == ["2.02 to 5.10", "2.02 to 2.15"]
    assert [rung.name for rung in GROWING.light().rungs] == list(NAMES[1:])
    assert GROWING.lower_errors() == "0 of 4 geometries"


def test_ten_times_the_rho_is_the_slope_of_logarithms() -> None:
    exact = sweep(*({1: 0.9 * 1.1 ** math.log10(rho), 2: 1.3 * 1.1 ** math.log10(rho)} for rho in RHOS))
    over = exact.tenfold(*FAR)
    assert over.n == 8 and [over.low, over.mean, over.high] == pytest.approx([1.1] * 3), "seeds differ in their level"
    fallen = FALLING.tenfold(*FAR)
    assert fallen.low is not None and fallen.high is not None and fallen.low < fallen.mean < fallen.high < 1
    means = GROWING.tenfold_of_means(*FAR)
    logs = [sum(map(math.log, rung.ratios[FAR].values())) / len(rung.ratios[FAR]) for rung in GROWING.rungs]
    line = stats.linregress([math.log10(rho) for rho in RHOS], logs)
    assert (means.n, means.mean) == (4, pytest.approx(math.exp(line.slope)))
