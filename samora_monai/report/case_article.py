"""A case of a report as an HTML article: the choice of its slice, three pictures, and its classes."""

from __future__ import annotations

from collections.abc import Sequence
from string import Template
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_hex

from samora_monai.metrics import ClassMetrics
from samora_monai.pictures.overlay import class_colors
from samora_monai.report.case_pictures import case_pictures
from samora_monai.report.case_slices import CaseSlice, CaseSlices
from samora_monai.report.class_summary import mean_dice
from samora_monai.report.html_text import number, read, text

TITLES = {"only": "The only case", "worst": "Worst case", "median": "Median case", "best": "Best case"}


class RankedCase(NamedTuple):
    """A case of `worst_median_best`."""

    rank: str  # a key of TITLES
    name: str
    rows: Sequence[ClassMetrics]
    slices: CaseSlices
    entropy: float = float("nan")  # `FoundEntropy` of the prediction


def case_article(case: RankedCase, class_names: Sequence[str]) -> str:
    """The case as an HTML `article`, with the largest error of the worst case and the organs of the others."""
    shown = case.slices.error if case.rank in ("worst", "only") else case.slices.organs
    return Template(read("case.html")).substitute(
        case_pictures(shown, len(class_names)),
        title=TITLES[case.rank],
        name=text(case.name),
        mean_dice=number(mean_dice(case.rows), 3),
        slice=shown.number,
        slices=shown.total,
        entropy="" if np.isnan(case.entropy) else f" Entropy of the prediction: {number(case.entropy, 2)}.",
        reason=text(_reason(shown, case.rows, class_names)),
        classes_in_reference=text(_names(shown.label, class_names)),
        classes_in_prediction=text(_names(shown.pred, class_names)),
        rows="\n".join(_class_row(row, class_names) for row in case.rows),
    )


def _reason(shown: CaseSlice, rows: Sequence[ClassMetrics], class_names: Sequence[str]) -> str:
    # the reason why the slice is shown, after "the slice"
    if not shown.classes:
        return "with the most classes in the reference and, among such slices, the largest labelled area"
    names = ", ".join(class_names[index] for index in shown.classes)
    lowest = f"{names} (Dice {np.nanmin([row.dice for row in rows]):.3f}, the lowest of this case)"
    if not shown.differing:
        return f"with the most classes; prediction and reference are identical in {lowest}"
    return f"where prediction and reference differ most in {lowest}, by {shown.differing} pixels"


def _class_row(row: ClassMetrics, class_names: Sequence[str]) -> str:
    remark = "missed" if row.dice == 0 and np.isnan(row.hd95_mm) else ""
    if np.isnan(row.dice):
        remark = "false alarm" if row.samed_dice == 1 else "absent from reference and prediction"
    bad = " bad" if remark in ("missed", "false alarm") else ""
    color = to_hex(class_colors(len(class_names))[row.class_index])
    name = f"{row.class_index} {text(class_names[row.class_index])}"
    return (
        f'<tr><th scope="row"><span class="swatch" style="background:{color}"></span>{name}</th>'
        f'<td class="number">{number(row.dice, 3)}</td><td class="number">{number(row.hd95_mm, 1)}</td>'
        f'<td class="remark{bad}">{remark}</td></tr>'
    )


def _names(labels: np.ndarray, class_names: Sequence[str]) -> str:
    return ", ".join(class_names[index] for index in np.unique(labels[labels > 0])) or "nothing"
