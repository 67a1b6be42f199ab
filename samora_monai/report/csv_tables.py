"""The metrics of an evaluation as tables of text, for CSV files and for the log.

Not `monai.handlers.MetricsSaver`: it writes one file per metric, and no counts of missed classes and false alarms.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from samora_monai.metrics import ClassMetrics
from samora_monai.replacing import replacing
from samora_monai.report.class_summary import METRICS, ClassSummary


def case_table(cases: Mapping[str, Sequence[ClassMetrics]], class_names: Sequence[str]) -> list[list[str]]:
    """A header, and a row for each class of each case."""
    table = [["case", "class", "name", *METRICS]]
    for case, rows in cases.items():
        for index, *values in rows:
            table.append([case, str(index), class_names[index], *(f"{value:.6f}" for value in values)])
    return table


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


def write_csv(path: Path, table: list[list[str]]) -> None:
    """Write a table atomically."""
    with replacing(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)
