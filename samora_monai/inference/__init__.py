"""Inference on volumes and on folders of scans."""

from samora_monai.inference import folder, inferers, label_origin, log

__all__ = ["folder", "inferers", "label_origin", "log"]
