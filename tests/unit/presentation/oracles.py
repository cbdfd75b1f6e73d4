"""Statistics by numpy and scipy, for what the package computes another way."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats


def first_coefficient(design: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Of least squares [points, columns] the first coefficient and the ends of its 95 % t interval."""
    coefficients, *_ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(values) - design.shape[1]
    variance = ((values - design @ coefficients) ** 2).sum() / freedom
    error = math.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0])
    low, high = stats.t.interval(0.95, freedom, coefficients[0], error)
    return float(coefficients[0]), float(low), float(high)
