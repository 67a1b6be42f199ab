"""`report.html`: an evaluation on one self-contained page, without other files, network or scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from samora_monai.metrics import ClassMetrics
from samora_monai.report.case_article import RankedCase, case_article
from samora_monai.report.class_summary import ClassSummary, mean_dice
from samora_monai.report.class_tables import dice_table, hd95_table
from samora_monai.report.html_text import number, text

# blocks all loading and scripts, even if a name got past the escaping
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_FOLDER = files("samora_monai.report")
PAGE = Template((_FOLDER / "page.html").read_text())
STYLE = (_FOLDER / "style.css").read_text()
METRICS_TEXT = (
    "Dice is the overlap of prediction and reference, from 0 (none) to 1 (identical). HD95, the 95th percentile of the "
    "Hausdorff distance, is the distance in millimetres within which 95 % of the points of each surface lie from the "
    "other surface; smaller is better. Dice is computed for cases with the class in the reference, HD95 for cases with "
    "the class in both. Missed: in the reference, but not predicted. False alarm: predicted, but not in the reference."
)
PLOTS_TEXT = (
    "Box: the middle half of the cases; thick line: median; whiskers: the last cases within 1.5 box lengths of the "
    "box; dots: the cases beyond, or all cases if there are fewer than five."
)
CASES_TEXT = (
    "Cases are ranked by their mean Dice over the classes of their reference. Slices are axial in radiological "
    "orientation: the patient's right is on the left of the picture, anterior at the top. Reference and prediction are "
    "filled; the lines on the prediction are the outline of the reference. The number to the right of a region is that "
    "of its class. The file metrics.csv beside this one lists all cases."
)


def report_page(
    cases: Mapping[str, Sequence[ClassMetrics]],
    summaries: Sequence[ClassSummary],
    class_names: Sequence[str],
    shown_cases: Sequence[RankedCase],
    facts: Mapping[str, str],
    settings: Mapping[str, Any],
) -> str:
    """Return the page as HTML 5.

    Args:
        cases: metrics by name of the case.
        summaries: one for each foreground class, and last their mean.
        class_names: in the order of the label values, background first.
        shown_cases: from top to bottom.
        facts: name and value of each fact about the run.
        settings: settings of the model.
    """
    total = summaries[-1]
    count = f"{len(cases)} {'case' if len(cases) == 1 else 'cases'}"
    classes = f"{len(class_names) - 1} {'class' if len(class_names) == 2 else 'classes'}"
    figures = {
        "Cases": str(len(cases)),
        "Mean Dice": number(total.means["dice"], 3),
        "Mean HD95, mm": number(total.means["hd95_mm"], 1),
        "Missed": str(total.missed),
        "False alarms": str(total.false_alarms),
    }
    cards = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in figures.items())
    cases_text = CASES_TEXT
    unranked = [name for name, rows in cases.items() if np.isnan(mean_dice(rows))]
    if unranked:
        cases_text += f" Not ranked, as no class is in their reference: {', '.join(unranked)}."
    return PAGE.substitute(
        policy=POLICY,
        title=text(f"Segmentation report: {count}, mean Dice {figures['Mean Dice']}"),
        style=STYLE,
        subtitle=text(f"{count}, {classes}. {facts.get('Evaluated', '')}"),
        figures=f'<dl class="figures">{cards}</dl>',
        metrics_text=text(METRICS_TEXT),
        plots_text=text(PLOTS_TEXT),
        metrics=dice_table(cases, summaries) + hd95_table(cases, summaries),
        cases_text=text(cases_text),
        cases="\n".join(case_article(case, class_names) for case in shown_cases),
        facts=_facts("Provenance of this result", facts),
        settings=_facts("Settings of the model in this run", _readable(settings)),
    )


def _facts(caption: str, facts: Mapping[str, str]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{text(name)}</th><td><code>{text(value)}</code></td></tr>'
        for name, value in facts.items()
    )
    return f'<table class="facts"><caption>{caption}</caption>\n<tbody>\n{rows}\n</tbody>\n</table>'


def _readable(settings: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in settings.items()
    }
