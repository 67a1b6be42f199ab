"""The slices of a case that a report may show."""

from __future__ import annotations

import os
import pickle
import tempfile
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import Orientation
from monai.utils import convert_to_tensor

from samora_monai.metrics import ClassMetrics
from samora_monai.pictures.overlay import axial_slices, slice_with_most_classes


class CaseSlice(NamedTuple):
    """One axial slice of a case, anterior at the top, the patient's right on the left."""

    image: np.ndarray  # [H, W] uint8, grey
    label: np.ndarray  # [H, W] uint8, reference label map
    pred: np.ndarray  # [H, W] uint8, predicted label map
    number: int  # from 1, counted from the feet
    total: int
    pixel_mm: tuple[float, float]  # height and width of a pixel
    classes: tuple[int, ...] = ()  # of the error slice: the classes with the lowest Dice
    differing: int = 0  # of the error slice: number of pixels on which these classes differ


class CaseSlices(NamedTuple):
    """Both slices of a case; its rank, which decides which of them is shown, is known only after the last case."""

    organs: CaseSlice  # with the most classes in the reference
    error: CaseSlice  # with the largest difference of reference and prediction in the class of the lowest Dice


def select_slices(
    image: torch.Tensor, label: MetaTensor, pred: torch.Tensor, rows: Sequence[ClassMetrics]
) -> CaseSlices:
    """Select the slices of one case.

    Args:
        image: the scan, [1, X, Y, Z], values in [0, 1] (others are clipped).
        label, pred: reference and predicted label map, [1, X, Y, Z].
        rows: the metrics of the case; at least one class is in the reference.
    """
    affine = label.affine
    volumes = (image, label.round().to(torch.uint8), pred.round().to(torch.uint8))
    scan, reference, predicted = (axial_slices(_with_affine(volume, affine)) for volume in volumes)  # [Z', H, W]
    # the spacing depends on the affine alone
    oriented: Any = Orientation("LPS", labels=None)(_with_affine(torch.zeros(1, 1, 1, 1), affine))
    width_mm, height_mm, _ = affine_to_spacing(oriented.affine).tolist()

    def cut(z: int, classes: tuple[int, ...] = (), differing: int = 0) -> CaseSlice:
        grey = np.round(255 * np.clip(np.nan_to_num(scan[z]), 0, 1)).astype(np.uint8)
        maps = reference[z].copy(), predicted[z].copy()  # views would keep the volumes in memory
        return CaseSlice(grey, *maps, z + 1, len(scan), (height_mm, width_mm), classes, differing)

    lowest = min(row.dice for row in rows if not np.isnan(row.dice))
    classes = tuple(row.class_index for row in rows if row.dice == lowest)
    differing = sum(np.count_nonzero((reference == c) != (predicted == c), axis=(1, 2)) for c in classes)
    organs = slice_with_most_classes(reference)
    worst = int(differing.argmax()) if differing.any() else organs
    return CaseSlices(cut(organs), cut(worst, classes, int(differing[worst])))


class SliceStore:
    """Slices by case, in an unnamed temporary file: memory holds one case, and a killed process leaves no file."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it outlives this call
        self._places: dict[str, tuple[int, int]] = {}  # start and length in bytes

    def __setitem__(self, case: str, slices: CaseSlices) -> None:
        packed = zlib.compress(pickle.dumps(slices), 1)
        self._places[case] = self._file.seek(0, os.SEEK_END), len(packed)
        self._file.write(packed)

    def __getitem__(self, case: str) -> CaseSlices:
        start, length = self._places[case]
        self._file.seek(start)
        return pickle.loads(zlib.decompress(self._file.read(length)))

    def __contains__(self, case: str) -> bool:
        return case in self._places

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()


def _with_affine(volume: torch.Tensor, affine: torch.Tensor) -> MetaTensor:
    return MetaTensor(convert_to_tensor(volume, track_meta=False), affine=affine)
