"""Which cases of an evaluation a report shows, and at which slices."""

from __future__ import annotations

import os
import pickle
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import Orientation

from samora_monai.metrics import ClassMetrics
from samora_monai.pictures.overlay import axial_slices, most_telling_slice


class TellingSlice(NamedTuple):
    """One axial slice of a case, the front on top, the patient's right at the left."""

    image: np.ndarray  # [H, W] uint8, grey
    label: np.ndarray  # [H, W] uint8, reference label map
    pred: np.ndarray  # [H, W] uint8, predicted label map
    number: int  # from 1, counted from the feet
    total: int
    pixel_mm: tuple[float, float]  # height and width of a pixel
    classes: tuple[int, ...] = ()  # of an error slice: the ones that it was chosen for
    differing: int = 0  # of an error slice: pixels on which these classes differ


class TellingSlices(NamedTuple):
    """The two slices of a case that a report may need, before it is known which place the case takes."""

    organs: TellingSlice  # the most classes of the reference, and of these the largest area
    error: TellingSlice  # where reference and prediction differ most in the class with the lowest Dice


def telling_slices(
    image: torch.Tensor, label: MetaTensor, pred: torch.Tensor, rows: Sequence[ClassMetrics]
) -> TellingSlices:
    """The telling slices of one case.

    Args:
        image: the scan, [1, X, Y, Z], values in [0, 1] (others are clipped).
        label: reference label map, [1, X, Y, Z] with an affine.
        pred: predicted label map, [1, X, Y, Z].
        rows: the case's metrics; at least one class is in the reference.
    """
    affine = label.affine
    scan = axial_slices(MetaTensor(_plain(image), affine=affine))  # [Z', H, W], as the next two
    reference, predicted = (
        axial_slices(MetaTensor(_plain(volume).round().to(torch.uint8), affine=affine)) for volume in (label, pred)
    )
    # the spacing depends on the affine alone
    oriented: Any = Orientation("LPS", labels=None)(MetaTensor(torch.zeros(1, 1, 1, 1), affine=affine))
    width_mm, height_mm, _ = affine_to_spacing(oriented.affine).tolist()

    def cut(z: int, classes: tuple[int, ...] = (), differing: int = 0) -> TellingSlice:
        grey = np.round(255 * np.clip(np.nan_to_num(scan[z]), 0, 1)).astype(np.uint8)
        maps = reference[z].copy(), predicted[z].copy()  # of the slice alone, not views of the volume
        return TellingSlice(grey, *maps, z + 1, len(scan), (height_mm, width_mm), classes, differing)

    lowest = min(row.dice for row in rows if not np.isnan(row.dice))
    classes = tuple(row.class_index for row in rows if row.dice == lowest)
    differing = np.zeros(len(scan), int)
    for index in classes:
        differing += np.count_nonzero((reference == index) != (predicted == index), axis=(1, 2))
    organs = most_telling_slice(reference)
    worst = int(differing.argmax()) if differing.any() else organs
    return TellingSlices(cut(organs), cut(worst, classes, int(differing[worst])))


def best_median_worst(scores: Mapping[str, float]) -> dict[str, str]:
    """The place (`worst`, `median`, `best`, or `only`) and name of the cases to show, as many as there are.

    Args:
        scores: mean Dice by case; NaN, of a case without any class in its reference, takes no place. Of an even number
            of cases the median is the lower one of the two in the middle.
    """
    ranked = sorted((name for name in scores if not np.isnan(scores[name])), key=lambda name: (scores[name], name))
    if len(ranked) == 1:
        return {"only": ranked[0]}
    if len(ranked) == 2:
        return {"worst": ranked[0], "best": ranked[1]}
    return {"worst": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "best": ranked[-1]} if ranked else {}


class SliceStore:
    """Telling slices by case, in a file without a name: memory stays that of one case, and no kill leaves a file.

    Args:
        folder: on whose disk the file is.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it outlives this call
        self._places: dict[str, tuple[int, int]] = {}  # start and length in bytes

    def __setitem__(self, case: str, slices: TellingSlices) -> None:
        packed = zlib.compress(pickle.dumps(slices), 1)
        self._places[case] = self._file.seek(0, os.SEEK_END), len(packed)
        self._file.write(packed)

    def __getitem__(self, case: str) -> TellingSlices:
        start, length = self._places[case]
        self._file.seek(start)
        return pickle.loads(zlib.decompress(self._file.read(length)))

    def __contains__(self, case: str) -> bool:
        return case in self._places

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()


def _plain(volume: torch.Tensor) -> torch.Tensor:
    return volume.as_tensor() if isinstance(volume, MetaTensor) else volume
