"""The numbers of an evaluation as tables of text: for CSV files and for the screen."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from samora_monai.metrics import ClassMetrics
from samora_monai.replacing import replacing
from samora_monai.report.class_summary import MEASURES, ClassSummary


def case_table(cases: Mapping[str, Sequence[ClassMetrics]], class_names: Sequence[str]) -> list[list[str]]:
    """A row for each class of each case, under a header."""
    table = [["case", "class", "name", *MEASURES]]
    for case, rows in cases.items():
        for row in rows:
            values = [number(getattr(row, measure), 6) for measure in MEASURES]
            table.append([case, str(row.class_index), class_names[row.class_index], *values])
    return table


def summary_table(summaries: Sequence[ClassSummary], digits: int = 6) -> list[list[str]]:
    """A row for each class and one for their mean, under a header."""
    table = [["name", "cases", "missed", "false_alarms", *MEASURES]]
    for s in summaries:
        counts = [str(s.cases), str(s.missed), str(s.false_alarms)]
        table.append([s.name, *counts, *(number(s.means[measure], digits) for measure in MEASURES)])
    return table


def printed_table(summaries: Sequence[ClassSummary]) -> str:
    """The summary in aligned columns."""
    table = summary_table(summaries, 3)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]
    return "\n".join([*lines[:-1], "-" * len(lines[0]), lines[-1]])


def write_csv(path: Path, table: list[list[str]]) -> None:
    """Write the rows; the file appears when it is whole."""
    with replacing(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)


def number(value: float, digits: int) -> str:
    """With so many decimals."""
    return "nan" if np.isnan(value) else f"{value:.{digits}f}"
