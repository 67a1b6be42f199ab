"""Inference on volumes and on folders of scans."""

from samora_monai.inference.folder import LabelProvenance, ReadableScans, scans_to_segment
from samora_monai.inference.inferers import SliceLabelInferer, SliceStackInferer
from samora_monai.inference.log import InferenceLog
from samora_monai.inference.precision import AutocastInferer, precision, use_bfloat16

__all__ = [
    "AutocastInferer",
    "InferenceLog",
    "LabelProvenance",
    "ReadableScans",
    "SliceLabelInferer",
    "SliceStackInferer",
    "precision",
    "scans_to_segment",
    "use_bfloat16",
]
