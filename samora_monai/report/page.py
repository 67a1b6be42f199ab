"""`report.html`: an evaluation on one self-contained page, without other files, network or scripts.

The page's Content-Security-Policy blocks all loading and scripts, even if a name got past the escaping.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

import numpy as np

from samora_monai.report.case_article import RankedCase, case_article
from samora_monai.report.class_summary import Cases, ClassSummary, mean_dice
from samora_monai.report.class_tables import dice_table, hd95_table
from samora_monai.report.html_text import number, read, text


def report_page(
    cases: Cases,
    summaries: Sequence[ClassSummary],
    class_names: Sequence[str],
    shown_cases: Sequence[RankedCase],
    facts: Mapping[str, str],
    settings: Mapping[str, Any],
    order: str = "",
) -> str:
    """Return the page as HTML 5.

    Args:
        cases: metrics by name of the case.
        summaries: one for each foreground class, and last their mean.
        class_names: in the order of the label values, background first.
        shown_cases: from top to bottom.
        facts, settings: of the run and of the model, by name; a fact `Note` is shown above the results too.
        order: `order_sentence` of the cases.
    """
    total = summaries[-1]
    unranked = ", ".join(name for name, rows in cases.items() if np.isnan(mean_dice(rows)))
    return Template(read("page.html")).substitute(
        style=read("style.css"),
        num_cases=f"{len(cases)} {'case' if len(cases) == 1 else 'cases'}",
        num_classes=f"{len(class_names) - 1} {'class' if len(class_names) == 2 else 'classes'}",
        evaluated=text(facts.get("Evaluated", "")),
        note=f'<p class="purpose">{text(facts["Note"])}</p>' if "Note" in facts else "",
        cases=len(cases),
        mean_dice=number(total.means["dice"], 3),
        mean_hd95=number(total.means["hd95_mm"], 1),
        missed=total.missed,
        false_alarms=total.false_alarms,
        tables=dice_table(cases, summaries) + hd95_table(cases, summaries),
        unranked=text(f" Not ranked, as no class is in their reference: {unranked}.") if unranked else "",
        order=text(order),
        articles="".join(case_article(case, class_names) for case in shown_cases),
        facts=_rows(facts),
        settings=_rows(settings),
    )


def _rows(facts: Mapping[str, Any]) -> str:
    values = {name: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for name, v in facts.items()}
    return "\n".join(
        f'<tr><th scope="row">{text(name)}</th><td><code>{text(value)}</code></td></tr>'
        for name, value in values.items()
    )
