"""Labelled slices, each with a random slice without a label."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import set_rnd
from monai.transforms import Randomizable
from monai.utils import CommonKeys as Keys
from torch.utils.data import Dataset

from samora_monai.data import SliceDataset
from samora_monai.semi_supervised.two_views import WEAK

UNLABELED = "unlabeled"


class PairedSlices(Randomizable, Dataset):
    """Items of `labeled` with the strong view of a random slice of `unlabeled` as `unlabeled`, its weak view as `weak`.

    As many items as labelled slices, so that an epoch has as many steps as without unlabelled scans, and samplers,
    workers and resumed runs do the same. Slices are drawn with replacement.

    Args:
        unlabeled: slices with the transform `TwoViews`.
    """

    def __init__(self, labeled: SliceDataset, unlabeled: SliceDataset) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled

    def __len__(self) -> int:
        """Number of labelled slices."""
        return len(self.labeled)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one labelled slice, and the two views of a random unlabelled one."""
        item: dict[str, Any] = dict(self.labeled[index])
        other = self.unlabeled[int(self.R.randint(len(self.unlabeled)))]
        return item | {UNLABELED: other[Keys.IMAGE], WEAK: other[WEAK]}

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> PairedSlices:
        """Seed the choice of slices, and the transforms of both data sets."""
        super().set_random_state(seed, state)
        for slices in (self.labeled, self.unlabeled):
            set_rnd(slices, int(self.R.randint(2**31)))
        return self


def pair(labeled: SliceDataset, unlabeled: SliceDataset | None) -> SliceDataset | PairedSlices:
    """Return `PairedSlices`, or the labelled slices as they are if there are no others."""
    return labeled if unlabeled is None else PairedSlices(labeled, unlabeled)
