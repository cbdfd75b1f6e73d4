"""What several seeds say together: mean, sample standard deviation and Student's t interval of paired values.

Runs of one seed share calibration text, order and random streams, so greedy and OA-EM are compared seed by seed: one
difference a seed, or one logarithm of a ratio, and the interval is of the mean of those.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Of `n` values: mean, sample standard deviation and t interval of the mean; of one value the mean alone.

    Of a `slope` through `n` points: itself as the mean, its interval, and no deviation.
    """

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None


def paired_ratios(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """`one` over `other` by the seeds that both have, the lowest first."""
    return {seed: one[seed] / other[seed] for seed in sorted(one) if seed in other}


def spread(values: Sequence[float]) -> Spread:
    """Of differences, one a seed; at least one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Spread(len(values), mean)
    std = statistics.stdev(values)
    reach = _quantile(len(values) - 1) * std / math.sqrt(len(values))
    return Spread(len(values), mean, std, mean - reach, mean + reach)


def ratio_spread(values: Sequence[float]) -> Spread:
    """Of positive ratios, one a seed: geometric mean and interval by logarithms; `std` is that of the ratios."""
    logs = spread([math.log(value) for value in values])
    if logs.low is None or logs.high is None:
        return Spread(logs.n, math.exp(logs.mean))
    return Spread(logs.n, math.exp(logs.mean), statistics.stdev(values), math.exp(logs.low), math.exp(logs.high))


def slope(points: Mapping[int, Sequence[tuple[float, float]]]) -> Spread:
    """How much y grows with x, in points (x, y) by seed: least squares of one slope and a level for each seed.

    A seed with one point says nothing of it and is left out; another has at least two values of x. The t interval takes
    the distances from those lines as independent; its degrees of freedom are the points less the seeds less one, and
    without any left there is none.
    """
    points = {seed: each for seed, each in points.items() if len(each) > 1}
    means = {seed: [statistics.fmean(values) for values in zip(*each, strict=True)] for seed, each in points.items()}
    centred = [(x - means[seed][0], y - means[seed][1]) for seed, each in points.items() for x, y in each]
    across = sum(x * x for x, _ in centred)
    mean = sum(x * y for x, y in centred) / across
    freedom = len(centred) - len(points) - 1
    if freedom < 1:
        return Spread(len(centred), mean)
    error = math.sqrt(sum((y - mean * x) ** 2 for x, y in centred) / freedom / across)
    reach = _quantile(freedom) * error
    return Spread(len(centred), mean, None, mean - reach, mean + reach)


@cache
def _quantile(freedom: int) -> float:
    """Student's t at the upper end of a two-sided interval: 4.303 for three seeds."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))
