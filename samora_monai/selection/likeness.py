"""How alike two of a number of scans are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samora_monai.selection.clusters import squared_distances
from samora_monai.selection.patients import Anatomy

SAME_SCAN = 0.1  # of the median distance to the nearest scan; closer scans are one scan twice


class Likeness:
    """How alike two scans are: 1 with nearly equal features, else the correlation of their anatomy.

    Args:
        anatomies: of the scans.
        embeddings: `[N, D]`, of the same scans.
    """

    def __init__(self, anatomies: Sequence[Anatomy], embeddings: np.ndarray) -> None:
        self.anatomies, self.embeddings = anatomies, embeddings
        distances = squared_distances(embeddings, embeddings)
        np.fill_diagonal(distances, np.inf)
        self.near = SAME_SCAN**2 * float(np.median(distances.min(1)))
        self.known: dict[tuple[int, int], float] = {}

    def __call__(self, scan: int, other: int) -> float:
        key = (min(scan, other), max(scan, other))
        if key not in self.known:
            near = float(((self.embeddings[scan] - self.embeddings[other]) ** 2).sum()) <= self.near
            self.known[key] = 1.0 if near else self.anatomies[scan].likeness(self.anatomies[other])
        return self.known[key]
