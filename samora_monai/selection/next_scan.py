"""Which scan to label next: representative ones first, the model's uncertain ones later.

With few labels, typical scans help most, with many, uncertain ones (TypiClust, https://arxiv.org/abs/2202.02794).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from samora_monai.errors import InputError
from samora_monai.selection.clusters import choose, squared_distances
from samora_monai.selection.features import embed
from samora_monai.selection.likeness import Likeness
from samora_monai.selection.patients import SAME_ANATOMY, Anatomy

PLANNED = 8  # labels for which clusters are made at once; later ones are chosen one by one
FEW = 4  # labels from which on the mixed strategy prefers uncertain scans


class Pool:
    """The scans whose features are known; embeddings and likeness are computed when they are needed.

    Args:
        cells: features of each scan, as `ScanFeatures.cells`, by its name.
        anatomies: of the same scans.
    """

    def __init__(self, cells: Mapping[str, np.ndarray], anatomies: Mapping[str, Anatomy]) -> None:
        self.names = sorted(cells)
        self.cells, self.anatomies = cells, anatomies

    @cached_property
    def embeddings(self) -> np.ndarray:
        return embed([self.cells[name] for name in self.names])

    @cached_property
    def likeness(self) -> Likeness:
        return Likeness([self.anatomies[name] for name in self.names], self.embeddings)

    def same_anatomy(self, scan: str, other: str) -> bool:
        """Whether two scans look as if they were of one patient; False if one is not in the pool."""
        if scan not in self.cells or other not in self.cells:
            return False
        return self.likeness(self.names.index(scan), self.names.index(other)) >= SAME_ANATOMY


@dataclass(frozen=True)
class NextScan:
    """What is known when the next scan is asked for.

    Args:
        unlabelled, labelled: names of the scans.
        patients: name of the patient of each scan.
        asked: unlabelled scans that were handed out before, the last one at the end.
        last: the scan that was handed out or labelled last, whose patient is avoided; None at the beginning.
        pool: the scans whose features are known.
        uncertainty: of scans by the served model, for those that were scored.
    """

    unlabelled: Sequence[str]
    labelled: Sequence[str]
    patients: Mapping[str, str]
    asked: Sequence[str]
    last: str | None
    pool: Pool
    uncertainty: Mapping[str, float]

    @cached_property
    def candidates(self) -> list[str]:
        """Scans to choose from: not handed out yet, and not of the last scan's patient, as long as there are any."""
        new = [scan for scan in self.unlabelled if scan not in self.asked]
        other = [scan for scan in new if not self._same_patient(scan)]
        if other or new:
            return other or new
        again = [scan for scan in self.unlabelled if not self._same_patient(scan)]
        return again or [scan for scan in self.unlabelled if scan != self.last] or list(self.unlabelled)

    def _same_patient(self, scan: str) -> bool:
        if self.last is None:
            return False
        return self.patients[scan] == self.patients[self.last] or self.pool.same_anatomy(scan, self.last)

    def representative(self, among: Sequence[str] | None = None) -> str:
        """The middle scan of the largest cluster that has no label, or of none of those handed out.

        Args:
            among: candidates to choose from; by default all.

        Raises:
            InputError: fewer than two scans have features, or no candidate has.
        """
        names = self.pool.names
        choosable = [i for i, name in enumerate(names) if name in (self.candidates if among is None else among)]
        if len(names) < 2 or not choosable:
            raise InputError(f"features of {len(names)} scans are known, of {len(choosable)} to choose from")
        done = {*self.labelled, *self.asked} - {names[i] for i in choosable}
        known = [i for i, name in enumerate(names) if name in done]
        others = [i for i in range(len(names)) if i not in known and i not in choosable]  # of the last scan's patient
        patients = [self.patients[name] for name in names]
        for budget in (min(max(PLANNED - len(known), 1), len(choosable)), 1):
            try:
                chosen = choose(self.pool.embeddings, known, others, budget, patients, self.pool.likeness)
                return names[chosen[0].scan]
            except InputError:  # fewer patients without a label than the budget
                continue
        taken = self.pool.embeddings[known or others or choosable]
        distances = squared_distances(self.pool.embeddings[choosable], taken).min(1)
        return names[choosable[int(distances.argmax())]]

    def uncertain(self) -> str:
        """The candidate of which the model is least certain.

        Raises:
            InputError: no candidate was scored.
        """
        return self._scored()[0]

    def mixed(self) -> str:
        """A representative scan among the uncertain ones: of N candidates, `FEW` / labels times N are considered.

        Raises:
            InputError: as `representative`; or, from `FEW` labels on, fewer than half of the candidates were scored.
        """
        if len(self.labelled) <= FEW:
            return self.representative()
        scored = self._scored()
        if 2 * len(scored) < len(self.candidates):
            raise InputError(f"{len(scored)} of {len(self.candidates)} scans were scored by the model so far")
        return self.representative(scored[: math.ceil(len(scored) * FEW / len(self.labelled))])

    def _scored(self) -> list[str]:
        """The scored candidates, the most uncertain first."""
        scored = [scan for scan in self.candidates if scan in self.uncertainty]
        if not scored:
            raise InputError(f"none of {len(self.candidates)} scans was scored by the model so far")
        return sorted(scored, key=lambda scan: (-self.uncertainty[scan], scan))
