"""The report of an evaluation: tables, CSV files and a page of HTML."""

from samora_monai.report import (
    box_plots,
    case_article,
    case_pictures,
    case_report,
    class_summary,
    class_tables,
    csv_tables,
    html_text,
    page,
    provenance,
    shown_cases,
    style,
)

__all__ = [
    "box_plots",
    "case_article",
    "case_pictures",
    "case_report",
    "class_summary",
    "class_tables",
    "csv_tables",
    "html_text",
    "page",
    "provenance",
    "shown_cases",
    "style",
]
