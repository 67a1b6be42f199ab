"""Which scans to label first: features, clusters, patients, a table and a contact sheet."""

from samora_monai.selection.clusters import Choice, choose
from samora_monai.selection.features import ScanFeatures, embed, scan_features
from samora_monai.selection.likeness import Likeness
from samora_monai.selection.next_scan import NextScan, Pool
from samora_monai.selection.patients import Anatomy, patients_of
from samora_monai.selection.result import Selection

__all__ = [
    "Anatomy", "Choice", "Likeness", "NextScan", "Pool", "ScanFeatures", "Selection", "choose", "embed", "patients_of",
    "scan_features",
]  # fmt: skip
