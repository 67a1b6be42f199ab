"""Means of an evaluation, per class over the cases and per case over its classes, and the ranking of the cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from samora_monai.metrics import ClassMetrics

METRICS = ("dice", "hd95_mm", "hd95_voxels", "samed_dice", "samed_hd95")


class ClassSummary(NamedTuple):
    """Means of one class over the cases, NaN values left out."""

    name: str
    cases: int  # with this class in the reference
    missed: int  # of these, nothing predicted
    false_alarms: int  # predicted, but absent from the reference
    means: dict[str, float]  # by metric


def summarize(cases: Mapping[str, Sequence[ClassMetrics]], class_names: Sequence[str]) -> list[ClassSummary]:
    """Average over the cases for each foreground class, and last over these means, under the name `mean`.

    The SAMed metrics are never NaN, so their means are over all cases, as in SAMed's code.
    """
    summaries = []
    for index, name in enumerate(class_names[1:], 1):
        rows = [row for rows in cases.values() for row in rows if row.class_index == index]
        present = [row for row in rows if not np.isnan(row.dice)]
        missed = sum(row.dice == 0 and np.isnan(row.hd95_voxels) for row in present)
        false_alarms = sum(np.isnan(row.dice) and row.samed_dice == 1 for row in rows)
        means = {metric: mean(getattr(row, metric) for row in rows) for metric in METRICS}
        summaries.append(ClassSummary(name, len(present), missed, false_alarms, means))
    means = {metric: mean(s.means[metric] for s in summaries) for metric in METRICS}
    total = (sum(s.cases for s in summaries), sum(s.missed for s in summaries), sum(s.false_alarms for s in summaries))
    return [*summaries, ClassSummary("mean", *total, means)]


def mean_dice(rows: Iterable[ClassMetrics]) -> float:
    """Mean Dice of a case over the classes of its reference; NaN if it has none."""
    return mean(row.dice for row in rows)


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    finite = [value for value in values if not np.isnan(value)]
    return float(np.mean(finite)) if finite else float("nan")


def worst_median_best(scores: Mapping[str, float]) -> dict[str, str]:
    """Select the `worst`, `median` and `best` case (`worst` and `best` of two, `only` of one), by rank.

    Args:
        scores: mean Dice by case; cases whose score is NaN are not ranked. The median of an even number of cases is the
            lower one of the two in the middle.
    """
    ranked = sorted((name for name in scores if not np.isnan(scores[name])), key=lambda name: (scores[name], name))
    if len(ranked) == 1:
        return {"only": ranked[0]}
    if len(ranked) == 2:
        return {"worst": ranked[0], "best": ranked[1]}
    return {"worst": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "best": ranked[-1]} if ranked else {}
