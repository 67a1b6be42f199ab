"""Means of an evaluation: of each class over the cases, of each case over its classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from samora_monai.metrics import ClassMetrics

MEASURES = ("dice", "hd95_mm", "hd95_voxels", "samed_dice", "samed_hd95")


class ClassSummary(NamedTuple):
    """Means over the cases of one class; NaN values of single cases are left out."""

    name: str
    cases: int  # with this class in the reference
    missed: int  # of these, nothing predicted
    false_alarms: int  # predicted, but not in the reference
    means: dict[str, float]


def summarize(cases: Mapping[str, Sequence[ClassMetrics]], class_names: Sequence[str]) -> list[ClassSummary]:
    """Means over the cases for each foreground class, and last the mean of these means, named `mean`.

    The SAMed measures have no NaN, so their means are over all cases, as in the reference.
    """
    summaries = []
    for index, name in enumerate(class_names[1:], 1):
        rows = [row for rows in cases.values() for row in rows if row.class_index == index]
        present = [row for row in rows if not np.isnan(row.dice)]
        missed = sum(row.dice == 0 and np.isnan(row.hd95_voxels) for row in present)
        false_alarms = sum(np.isnan(row.dice) and row.samed_dice == 1 for row in rows)
        means = {measure: mean(getattr(row, measure) for row in rows) for measure in MEASURES}
        summaries.append(ClassSummary(name, len(present), missed, false_alarms, means))
    means = {measure: mean(s.means[measure] for s in summaries) for measure in MEASURES}
    total = (sum(s.cases for s in summaries), sum(s.missed for s in summaries), sum(s.false_alarms for s in summaries))
    return [*summaries, ClassSummary("mean", *total, means)]


def mean_dice(rows: Iterable[ClassMetrics]) -> float:
    """Of one case over the classes of its reference; NaN if it has none."""
    return mean(row.dice for row in rows)


def mean(values: Iterable[float]) -> float:
    """Without NaN; NaN if nothing remains."""
    finite = [value for value in values if not np.isnan(value)]
    return float(np.mean(finite)) if finite else float("nan")
