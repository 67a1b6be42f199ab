"""The HTML tables of a report: a row with a box plot for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from samora_monai.metrics import ClassMetrics
from samora_monai.report.box_plots import axis, box_plot, scale_end
from samora_monai.report.class_summary import ClassSummary
from samora_monai.report.html_text import NOTHING, number, text

Cases = Mapping[str, Sequence[ClassMetrics]]  # metrics by name of the case


def dice_table(cases: Cases, summaries: Sequence[ClassSummary]) -> str:
    """Counts and Dice of each class over the cases that contain it in the reference."""
    rows = []
    for index, summary in enumerate(summaries[:-1], 1):
        values = _values(cases, index, "dice")
        numbers = {
            "Cases": str(summary.cases),
            "Missed": str(summary.missed),
            "False alarms": str(summary.false_alarms),
            "Mean": number(summary.means["dice"], 3),
            "Median": number(_median(values), 3),
        }
        rows.append((summary.name, numbers, values))
    total = summaries[-1]
    foot = [total.cases, total.missed, total.false_alarms, number(total.means["dice"], 3), ""]
    return _metric_table("Dice", rows, 1.0, [str(value) for value in foot])


def hd95_table(cases: Cases, summaries: Sequence[ClassSummary]) -> str:
    """HD95 in mm of each class over the cases that contain it in reference and prediction."""
    rows = []
    for index, summary in enumerate(summaries[:-1], 1):
        values = _values(cases, index, "hd95_mm")
        mean, median = number(summary.means["hd95_mm"], 1), number(_median(values), 1)
        rows.append((summary.name, {"Cases": str(len(values)), "Mean": mean, "Median": median}, values))
    foot = [str(sum(len(values) for *_, values in rows)), number(summaries[-1].means["hd95_mm"], 1), ""]
    return _metric_table("HD95, mm", rows, scale_end([value for *_, values in rows for value in values]), foot)


def _metric_table(
    metric: str, rows: Sequence[tuple[str, dict[str, str], list[float]]], end: float, foot: Sequence[str]
) -> str:
    # explicit roles: on narrow screens CSS turns rows into boxes, and screen readers would no longer see a table
    columns = list(rows[0][1])
    head = "".join(f'<th scope="col" role="columnheader">{text(name)}</th>' for name in ("Class", *columns))
    head += f'<th scope="col" role="columnheader" class="plot-column">{text(metric)}{axis(end)}</th>'
    scale = text(f"{metric} from 0 to {end:g}")
    body = []
    for name, numbers, values in rows:
        cells = "".join(_number_cell(key, value) for key, value in numbers.items())
        plot = box_plot(values, end, f"{metric} of {name}") if values else NOTHING
        cells += f'<td role="cell" class="plot-column" data-name="{scale}">{plot}</td>'
        body.append(f'<tr role="row"><th scope="row" role="rowheader">{text(name)}</th>{cells}</tr>')
    totals = "".join(_number_cell(key, value) for key, value in zip(columns, foot, strict=True) if value)
    gaps = sum(not value for value in foot) + 1
    totals += f'<td role="cell" class="plot-column" colspan="{gaps}"></td>'
    return f"""<table role="table"><caption>{text(metric)}</caption>
<thead role="rowgroup"><tr role="row">{head}</tr></thead>
<tbody role="rowgroup">
{chr(10).join(body)}
</tbody>
<tfoot role="rowgroup"><tr role="row"><th scope="row" role="rowheader">All classes</th>{totals}</tr></tfoot>
</table>
"""


def _number_cell(name: str, value: str) -> str:
    bad = " bad" if name in ("Missed", "False alarms") and value != "0" else ""
    return f'<td role="cell" class="number{bad}" data-name="{text(name)}">{text(value)}</td>'


def _values(cases: Cases, index: int, metric: str) -> list[float]:
    found = (getattr(row, metric) for rows in cases.values() for row in rows if row.class_index == index)
    return [value for value in found if not np.isnan(value)]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else float("nan")
