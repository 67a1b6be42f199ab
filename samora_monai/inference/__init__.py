"""Inference on volumes and on folders of scans."""

from samora_monai.inference.folder import LabelProvenance, ReadableScans, scans_to_segment
from samora_monai.inference.inferers import SliceLabelInferer, SliceStackInferer
from samora_monai.inference.log import InferenceLog

__all__ = [
    "InferenceLog",
    "LabelProvenance",
    "ReadableScans",
    "SliceLabelInferer",
    "SliceStackInferer",
    "scans_to_segment",
]
