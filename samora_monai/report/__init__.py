"""The report of an evaluation: tables, CSV files and an HTML page."""

from samora_monai.report.case_report import CaseReport
from samora_monai.report.provenance import Provenance

__all__ = ["CaseReport", "Provenance"]
