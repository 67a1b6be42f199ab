"""Pictures of a segmentation: the prediction as a tint and the reference as a contour over the grey scan.

Differs from `monai.visualize.blend_images` in: each class keeps its colour, whichever classes are on the slice.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.data import MetaTensor
from monai.transforms import Orientation
from monai.utils import convert_to_numpy
from scipy.ndimage import binary_erosion

# matplotlib's ten, reordered so that neighbours differ strongly
COLORS = ("red", "blue", "green", "orange", "purple", "cyan", "pink", "olive", "brown", "gray")
TINT = 0.45  # opacity of the prediction
MAX_CONTOUR = 512  # pixels; contours of slices up to this side are one pixel wide, others in proportion


def class_colors(num_classes: int) -> np.ndarray:
    """RGB in [0, 1] of each class, [num_classes, 3]; the background is black, and colours repeat after ten classes."""
    foreground = (f"tab:{COLORS[index % len(COLORS)]}" for index in range(num_classes - 1))
    return np.array([to_rgb(name) for name in ("black", *foreground)])


def overlay(image: np.ndarray, label: np.ndarray | None, pred: np.ndarray | None, num_classes: int) -> np.ndarray:
    """Draw a slice with the prediction as a translucent fill and the reference as a contour.

    Args:
        image: [H, W], values in [0, 1] (others are clipped).
        label, pred: reference and predicted label map [H, W], or None.
        num_classes: number of classes, background included.

    Returns:
        [H, W, 3] uint8.
    """
    colors = class_colors(num_classes)
    rgb = np.repeat(np.clip(image, 0, 1)[..., None], 3, axis=-1).astype(float)  # [H, W, 3]
    if pred is not None:
        inside = pred > 0
        rgb[inside] = (1 - TINT) * rgb[inside] + TINT * colors[pred[inside].astype(int)]
    if label is not None:
        width = math.ceil(max(image.shape) / MAX_CONTOUR)
        for index in range(1, num_classes):
            mask = label == index
            rgb[mask & ~binary_erosion(mask, iterations=width)] = colors[index]
    return np.round(255 * rgb).astype(np.uint8)


def axial_slices(volume: MetaTensor) -> np.ndarray:
    """Return axial slices in radiological orientation: foot to head, anterior at the top, patient's right on the left.

    `[1, X, Y, Z]` with an affine -> `[Z', H, W]`; Z' is the axis of the volume that is nearest to the body's.
    """
    return convert_to_numpy(Orientation("LPS", labels=None)(volume))[0].transpose(2, 1, 0)


def slice_with_most_classes(label: np.ndarray) -> int:
    """Return the index of the slice of `[Z, H, W]` with the most classes; among such, whose smallest is largest."""
    scores = []
    for part in label:
        counts = np.unique(part[part > 0], return_counts=True)[1]
        scores.append((len(counts), int(counts.min(initial=part.size)), int(counts.sum())))
    ties = [z for z, score in enumerate(scores) if score == max(scores)]
    return ties[len(ties) // 2]  # the middle one, also of an empty map


def save_overlay_png(
    path: str | os.PathLike,
    image: np.ndarray,
    pred: np.ndarray,
    label: np.ndarray | None = None,
    class_names: Sequence[str] = ("background", "foreground"),
) -> None:
    """Write scan, reference (if given) and prediction side by side, with a legend of the classes on the slice.

    Args:
        path: the PNG file; its folder is created if needed.
        image: [H, W], values in [0, 1].
        pred, label: predicted and reference label map [H, W].
        class_names: in the order of the label values, background first.
    """
    panels = {"Scan": None, **({} if label is None else {"Reference": label}), "Prediction": pred}
    height, width = image.shape
    side = 4.0  # inches
    figure = Figure(figsize=(side * len(panels), side * height / width + 1.1), facecolor="black", layout="constrained")
    for axis, (name, labels) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axis.imshow(overlay(image, labels, labels, len(class_names)), interpolation="lanczos")
        axis.set_title(name, color="white", fontsize=13)
        axis.set_axis_off()
    shown = np.union1d(pred, pred if label is None else label).astype(int)
    colors = class_colors(len(class_names))
    handles = [Patch(color=colors[i], label=class_names[i]) for i in shown if i > 0]
    if handles:
        columns = min(len(handles), 8)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, labelcolor="white")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
