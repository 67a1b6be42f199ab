"""Segmentation networks: SAM with low-rank experts, their fusion, and two decoders."""

from samora_monai.networks.build import build_segmenter
from samora_monai.networks.config import PRESETS, SegmenterConfig
from samora_monai.networks.experts import LEVELS
from samora_monai.networks.segmenter import Segmenter
from samora_monai.networks.trainable import parameter_groups, set_trainable

__all__ = [
    "LEVELS",
    "PRESETS",
    "Segmenter",
    "SegmenterConfig",
    "build_segmenter",
    "parameter_groups",
    "set_trainable",
]
