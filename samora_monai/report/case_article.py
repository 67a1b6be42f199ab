"""A case of a report as an HTML article: the choice of its slice, three pictures, and its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_hex

from samora_monai.metrics import ClassMetrics
from samora_monai.pictures.overlay import class_colors
from samora_monai.report.case_pictures import case_pictures
from samora_monai.report.case_slices import CaseSlice, CaseSlices
from samora_monai.report.class_summary import mean_dice
from samora_monai.report.html_text import number, text

TITLES = {"only": "The only case", "worst": "Worst case", "median": "Median case", "best": "Best case"}


class RankedCase(NamedTuple):
    """A case of `worst_median_best`."""

    rank: str  # a key of TITLES
    name: str
    rows: Sequence[ClassMetrics]
    slices: CaseSlices

    @property
    def shown(self) -> CaseSlice:
        """The slice to show: the largest error of the worst case, the organs of the others."""
        return self.slices.error if self.rank in ("worst", "only") else self.slices.organs


def case_article(case: RankedCase, class_names: Sequence[str]) -> str:
    """The case as an HTML `article`."""
    pictures = case_pictures(case.shown, len(class_names))
    where = f"axial slice {case.shown.number} of {case.shown.total}"
    reference, prediction = (_named(labels, class_names) for labels in (case.shown.label, case.shown.pred))
    panels = [
        ("Scan", pictures.scan, f"Scan of case {case.name}, {where}."),
        ("Reference", pictures.reference, f"Reference on the same slice: {reference}."),
        ("Prediction", pictures.prediction, f"Prediction on the same slice: {prediction}."),
    ]
    figures = "".join(
        f'<figure><img src="{uri}" width="{pictures.width}" height="{pictures.height}" alt="{text(alt)}">'
        f"<figcaption>{title}</figcaption></figure>"
        for title, uri, alt in panels
    )
    rows = "\n".join(_class_row(row, class_names[row.class_index], len(class_names)) for row in case.rows)
    return f"""<article class="case">
<h3>{TITLES[case.rank]}: <bdi>{text(case.name)}</bdi>, mean Dice {number(mean_dice(case.rows), 3)}</h3>
<p>{text(_slice_text(case, class_names))}</p>
<div class="panels">{figures}</div>
<table><caption>Classes of <bdi>{text(case.name)}</bdi></caption>
<thead><tr><th scope="col">Class</th><th scope="col">Dice</th><th scope="col">HD95, mm</th>
<th scope="col" class="remark">Remark</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</article>"""


def _slice_text(case: RankedCase, class_names: Sequence[str]) -> str:
    """The slice and the reason why it is shown, in one sentence."""
    shown = case.shown
    where = f"Axial slice {shown.number} of {shown.total}, counted from the feet: "
    if not shown.classes:
        return (
            where
            + "the slice with the most classes in the reference and, among such slices, the largest labelled area."
        )
    names = ", ".join(class_names[index] for index in shown.classes)
    dice = next(row.dice for row in case.rows if row.class_index == shown.classes[0])
    lowest = f"{names} (Dice {number(dice, 3)}, the lowest of this case)"
    if not shown.differing:
        return where + f"the slice with the most classes; prediction and reference are identical in {lowest}."
    return where + f"the slice where prediction and reference differ most in {lowest}, by {shown.differing} pixels."


def _class_row(row: ClassMetrics, name: str, num_classes: int) -> str:
    missed = row.dice == 0 and np.isnan(row.hd95_mm)
    remark = "missed" if missed else ""
    if np.isnan(row.dice):
        remark = "false alarm" if row.samed_dice == 1 else "absent from reference and prediction"
    color = to_hex(class_colors(num_classes)[row.class_index])
    bad = " bad" if missed or remark == "false alarm" else ""
    return (
        f'<tr><th scope="row"><span class="swatch" style="background:{color}"></span>{row.class_index} {text(name)}'
        f'</th><td class="number">{number(row.dice, 3)}</td><td class="number">{number(row.hd95_mm, 1)}</td>'
        f'<td class="remark{bad}">{remark}</td></tr>'
    )


def _named(labels: np.ndarray, class_names: Sequence[str]) -> str:
    return ", ".join(class_names[index] for index in np.unique(labels[labels > 0])) or "nothing"
