"""Means, standard deviations and intervals against scipy's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from oaem.presentation.spread import ratio_spread, slope, spread
from tests.unit.presentation.oracles import first_coefficient


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.0], [3.0, -1.0], [0.5, 0.25, 0.125, 0.75, 0.3]])
def test_an_interval_is_students(values: list[float]) -> None:
    found = spread(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.n, found.mean) == (len(values), pytest.approx(np.mean(values), rel=1e-12))
    assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))


def test_ratios_are_averaged_as_logarithms() -> None:
    found, logs = ratio_spread([2.0, 0.5, 1.0]), spread([math.log(2), math.log(0.5), 0.0])
    assert found.mean == pytest.approx(1.0)
    assert found.low is not None and found.high is not None and logs.high is not None
    assert found.low * found.high == pytest.approx(1.0)
    assert found.high == pytest.approx(math.exp(logs.high))


def test_one_value_has_no_spread() -> None:
    for found in (spread([3.0]), ratio_spread([3.0])):
        assert (found.n, found.mean, found.std, found.low, found.high) == (1, pytest.approx(3.0), None, None, None)


@pytest.mark.parametrize("seeds", [[5], [5, 5], [5, 2, 4]])
def test_a_slope_is_that_of_least_squares_with_a_level_a_seed(seeds: list[int]) -> None:
    """By numpy's least squares over columns for the levels."""
    generator = np.random.default_rng(len(seeds))
    points = {
        seed: [(float(x), float(0.3 * x + seed + y)) for x, y in generator.normal(size=(count, 2))]
        for seed, count in enumerate(seeds)
    }
    rows = [([x] + [float(other == seed) for other in points], y) for seed, each in points.items() for x, y in each]
    design, values = np.array([row for row, _ in rows]), np.array([y for _, y in rows])
    expected, low, high = first_coefficient(design, values)
    found = slope(points)
    assert (found.n, found.mean) == (len(values), pytest.approx(expected, rel=1e-9))
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))


def test_a_line_through_two_points_has_no_interval_and_a_single_point_no_say() -> None:
    found = slope({42: [(0.0, 1.0), (2.0, 4.0)], 43: [(1.0, 7.0)]})
    assert (found.n, found.mean, found.low, found.high) == (2, pytest.approx(1.5), None, None)
