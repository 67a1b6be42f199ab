"""SAM with experts: networks and their parts."""

from samora_monai.networks.experts import LEVELS
from samora_monai.networks.segmenter import PRESETS, Segmenter, build_segmenter
from samora_monai.networks.trainable import set_trainable

__all__ = ["LEVELS", "PRESETS", "Segmenter", "build_segmenter", "set_trainable"]
