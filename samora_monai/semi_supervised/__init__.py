"""Fine-tuning that also learns from scans without labels: a mean teacher, and slices mixed by copy-paste."""

from samora_monai.semi_supervised.mixed_batch import MixedBatch
from samora_monai.semi_supervised.paired_slices import PairedSlices, pair
from samora_monai.semi_supervised.scans import default_decay, unlabeled_slices
from samora_monai.semi_supervised.two_views import TwoViews

__all__ = ["MixedBatch", "PairedSlices", "TwoViews", "default_decay", "pair", "unlabeled_slices"]
