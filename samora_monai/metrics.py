"""Dice and 95th percentile Hausdorff distance (HD95) of label maps, in two conventions side by side.

- MONAI's: Dice is NaN if the class is absent from the reference (`ignore_empty`); HD95 is the larger of the two
  directed 95th percentiles, in millimetres and in voxels, and NaN if either mask is empty.
- SAMed's (https://github.com/hitachinsk/SAMed, `calculate_metric_percase`, which calls medpy): HD95 is one percentile
  of the pooled distances, in voxels; empty masks get fixed values that favour the method. Published results of SAM on
  Synapse follow this convention; compare them with this one only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.metrics import compute_hausdorff_distance
from monai.utils import convert_to_numpy
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree


class ClassMetrics(NamedTuple):
    """The metrics of one class in one case."""

    class_index: int  # 1 ... num_classes - 1
    dice: float  # NaN if the class is absent from the reference
    hd95_mm: float  # NaN if the class is absent from reference or prediction
    hd95_voxels: float  # NaN if the class is absent from reference or prediction
    samed_dice: float  # SAMed's convention, never NaN
    samed_hd95: float  # voxels, SAMed's convention, never NaN


def samed_dice_hd95(pred: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    """Return Dice in [0, 1] and HD95 in voxels of two binary masks as SAMed and H-SAM compute them.

    Reference empty, but not the prediction: (1, 0). Prediction empty, whatever the reference: (0, 0).

    Args:
        pred: predicted mask of any number of dimensions; non-zero is foreground.
        gt: reference mask of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(pred, gt)
    pred, gt = pred != 0, gt != 0
    if not pred.any():
        return 0.0, 0.0
    if not gt.any():
        return 1.0, 0.0
    box = find_objects((pred | gt).astype(np.uint8))[0]
    pred, gt = pred[box], gt[box]
    a, b = _surface(pred), _surface(gt)
    distances = np.concatenate([KDTree(b).query(a)[0], KDTree(a).query(b)[0]])
    return dice(pred, gt), float(np.percentile(distances, 95))


def case_metrics(
    pred: NdarrayOrTensor, label: NdarrayOrTensor, num_classes: int, spacing: Sequence[float]
) -> list[ClassMetrics]:
    """Return the metrics of each foreground class of one case, 1 ... num_classes - 1, in both conventions.

    Each class is cropped to the bounding box of its two masks, which limits memory to about that of the label maps.

    Args:
        pred: predicted label map [X, Y, Z] (or [X, Y]), integers 0 ... num_classes - 1 of any type.
        label: reference label map of the same shape.
        num_classes: number of classes, background included.
        spacing: voxel size in mm along the axes of the maps.

    Raises:
        ValueError: the shapes differ, or `spacing` has another number of axes.
    """
    pred_map, label_map = (np.rint(convert_to_numpy(labels)).astype(np.int32) for labels in (pred, label))
    _check_shapes(pred_map, label_map)
    if len(spacing) != pred_map.ndim:
        raise ValueError(f"spacing has {len(spacing)} entries, expected {pred_map.ndim}, one for each axis")
    # one box for each class, None if it is absent
    boxes = find_objects(pred_map, num_classes - 1), find_objects(label_map, num_classes - 1)
    rows = []
    for index in range(1, num_classes):
        in_pred, in_label = (found[index - 1] for found in boxes)
        if in_pred is None or in_label is None:
            absent = np.nan if in_label is None else 0.0
            rows.append(ClassMetrics(index, absent, np.nan, np.nan, 0.0 if in_pred is None else 1.0, 0.0))
            continue
        box = tuple(slice(min(p.start, r.start), max(p.stop, r.stop)) for p, r in zip(in_pred, in_label, strict=True))
        a, b = pred_map[box] == index, label_map[box] == index
        samed_dice, samed_hd95 = samed_dice_hd95(a, b)
        rows.append(ClassMetrics(index, dice(a, b), _hd95(a, b, spacing), _hd95(a, b, None), samed_dice, samed_hd95))
    return rows


def _check_shapes(pred: np.ndarray, gt: np.ndarray) -> None:
    if pred.shape != gt.shape:
        raise ValueError(f"prediction has shape {pred.shape}, the reference {gt.shape}; resample both to one grid")


def dice(pred: np.ndarray, gt: np.ndarray) -> float:
    """Dice of two boolean masks of one shape, of which at least one is not empty."""
    return float(2 * np.count_nonzero(pred & gt) / (np.count_nonzero(pred) + np.count_nonzero(gt)))


def _surface(mask: np.ndarray) -> np.ndarray:
    # voxels with a background neighbour across a face; outside the array counts as background -> [N, ndim]
    return np.argwhere(mask & ~binary_erosion(mask))


def _hd95(pred: np.ndarray, gt: np.ndarray, spacing: Sequence[float] | None) -> float:
    a, b = (torch.from_numpy(mask)[None, None] for mask in (pred, gt))
    return compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=spacing).item()
