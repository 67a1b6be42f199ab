"""Means of an evaluation over cases and over classes, as tables of text for CSV files and for the log.

Differs from `monai.handlers.MetricsSaver` in: one file for all metrics, with counts of missed classes and false alarms.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from samora_monai.metrics import ClassMetrics
from samora_monai.replacing import replacing

METRICS = ClassMetrics._fields[1:]
Cases = Mapping[str, Sequence[ClassMetrics]]  # metrics by name of the case


class ClassSummary(NamedTuple):
    """Means of one class over the cases, NaN values left out."""

    name: str
    cases: int  # with this class in the reference
    missed: int  # of these, nothing predicted
    false_alarms: int  # predicted, but absent from the reference
    means: dict[str, float]  # by metric


def summarize(cases: Cases, class_names: Sequence[str]) -> list[ClassSummary]:
    """Average over the cases for each foreground class, and last over these means, under the name `mean`.

    SAMed's metrics are never NaN, so that their means are over all cases, as in SAMed's code.
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
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def worst_median_best(scores: Mapping[str, float]) -> dict[str, str]:
    """Select the `worst`, `median` and `best` case (`worst` and `best` of two, `only` of one), by rank.

    Cases whose score, the mean Dice, is NaN are not ranked. The median of an even number is the lower middle one.
    """
    ranked = sorted((name for name in scores if not np.isnan(scores[name])), key=lambda name: (scores[name], name))
    places = {"worst": 0, "median": (len(ranked) - 1) // 2, "best": len(ranked) - 1}
    if len(ranked) < 3:
        places = [{}, {"only": 0}, {"worst": 0, "best": 1}][len(ranked)]
    return {rank: ranked[place] for rank, place in places.items()}


def summary_table(summaries: Sequence[ClassSummary], digits: int = 6) -> list[list[str]]:
    """A header, a row for each class, and a row for their mean."""
    table = [["name", "cases", "missed", "false_alarms", *METRICS]]
    for s in summaries:
        counts = [str(s.cases), str(s.missed), str(s.false_alarms)]
        table.append([s.name, *counts, *(f"{s.means[metric]:.{digits}f}" for metric in METRICS)])
    return table


def aligned_summary(summaries: Sequence[ClassSummary]) -> str:
    """The summary in aligned columns."""
    table = summary_table(summaries, 3)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]
    return "\n".join([*lines[:-1], "-" * len(lines[0]), lines[-1]])


def write_tables(
    folder: Path,
    cases: Cases,
    entropy: Mapping[str, float],
    class_names: Sequence[str],
    summaries: Sequence[ClassSummary],
) -> None:
    """Write the CSV files, each atomically.

    `metrics.csv` has a row for each class of each case, `cases.csv` one for each case with its mean Dice and entropy,
    `summary.csv` the means of each class.
    """
    by_case = [["case", "dice", "entropy"]]
    by_case += [[case, f"{mean_dice(rows):.6f}", f"{entropy[case]:.6f}"] for case, rows in cases.items()]
    table = [["case", "class", "name", *METRICS]]
    for case, rows in cases.items():
        for index, *values in rows:
            table.append([case, str(index), class_names[index], *(f"{value:.6f}" for value in values)])
    contents = {"metrics.csv": table, "cases.csv": by_case, "summary.csv": summary_table(summaries)}
    for name, content in contents.items():
        with replacing(folder / name) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(content)
