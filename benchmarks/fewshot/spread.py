"""Mean and spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds with the bounds of its spread.

    Args:
        mean: mean of the values.
        low, high: 95 % interval of the mean (Student's t) for three values or more, the smaller and the larger of two
            values, or the single value.
        count: number of values n.
    """

    mean: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 1, signed: bool = False) -> str:
        """`71.3 ± 1.2 (3)`, `71.3 [70.9, 71.7] (2)` or `71.3 (1)`, rounded only here."""
        sign = "+" if signed else ""
        text = f"{self.mean:{sign}.{digits}f}"
        if self.count >= 3:
            text += f" ± {self.high - self.mean:.{digits}f}"
        elif self.count == 2:
            text += f" [{self.low:{sign}.{digits}f}, {self.high:{sign}.{digits}f}]"
        return f"{text} ({self.count})"


def estimate(values: Sequence[float]) -> Estimate | None:
    """The estimate from the values that are not NaN; None if there are none."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    mean, count = float(np.mean(known)), len(known)
    if count < 3:
        return Estimate(mean, min(known), max(known), count)
    half = float(student.ppf(0.975, count - 1) * np.std(known, ddof=1) / math.sqrt(count))
    return Estimate(mean, mean - half, mean + half, count)
