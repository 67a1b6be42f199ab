"""The HTML tables of a report: a row with counts, mean, median and a box plot for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from samora_monai.report.box_plots import axis, box_plot, scale_end
from samora_monai.report.class_summary import Cases, ClassSummary
from samora_monai.report.html_text import NOTHING, number, text


def dice_table(cases: Cases, summaries: Sequence[ClassSummary]) -> str:
    """Dice of each class over the cases that contain it in the reference."""
    counts = [{"Cases": s.cases, "Missed": s.missed, "False alarms": s.false_alarms} for s in summaries]
    return _table("Dice", 3, 1.0, summaries, "dice", _values(cases, summaries, "dice"), counts)


def hd95_table(cases: Cases, summaries: Sequence[ClassSummary]) -> str:
    """HD95 in mm of each class over the cases that contain it in reference and prediction."""
    values = _values(cases, summaries, "hd95_mm")
    pooled = [value for of_class in values for value in of_class]
    counts = [{"Cases": len(of_class)} for of_class in (*values, pooled)]
    return _table("HD95, mm", 1, scale_end(pooled), summaries, "hd95_mm", values, counts)


def _values(cases: Cases, summaries: Sequence[ClassSummary], metric: str) -> list[list[float]]:
    # of each foreground class, without NaN
    columns = [[getattr(rows[index], metric) for rows in cases.values()] for index in range(len(summaries) - 1)]
    return [[value for value in column if not np.isnan(value)] for column in columns]


def _table(
    caption: str,
    digits: int,
    end: float,
    summaries: Sequence[ClassSummary],
    metric: str,
    values: Sequence[list[float]],
    counts: Sequence[Mapping[str, int]],
) -> str:
    # explicit roles: on narrow screens CSS turns rows into boxes, and screen readers would no longer see a table
    columns = ("Class", *counts[0], "Mean", "Median")
    head = "".join(f'<th scope="col" role="columnheader">{name}</th>' for name in columns)
    head += f'<th scope="col" role="columnheader" class="plot-column">{caption}{axis(end)}</th>'
    numbers = [
        "".join(_cell(name, str(value)) for name, value in count.items())
        + _cell("Mean", number(summary.means[metric], digits))
        for summary, count in zip(summaries, counts, strict=True)
    ]
    body = []
    for summary, cells, of_class in zip(summaries[:-1], numbers[:-1], values, strict=True):
        median = _cell("Median", number(np.median(of_class) if of_class else np.nan, digits))
        plot = box_plot(of_class, end, f"{caption} of {summary.name}") if of_class else NOTHING
        plot = f'<td role="cell" class="plot-column" data-name="{caption} from 0 to {end:g}">{plot}</td>'
        body.append(_row(summary.name, cells + median + plot))
    foot = _row("All classes", numbers[-1] + '<td role="cell" class="plot-column" colspan="2"></td>')
    return f"""<table role="table"><caption>{caption}</caption>
<thead role="rowgroup"><tr role="row">{head}</tr></thead>
<tbody role="rowgroup">
{chr(10).join(body)}
</tbody>
<tfoot role="rowgroup">{foot}</tfoot>
</table>
"""


def _row(name: str, cells: str) -> str:
    return f'<tr role="row"><th scope="row" role="rowheader">{text(name)}</th>{cells}</tr>'


def _cell(name: str, value: str) -> str:
    bad = " bad" if name in ("Missed", "False alarms") and value != "0" else ""
    return f'<td role="cell" class="number{bad}" data-name="{name}">{value}</td>'
