"""Reading, checking and scaling scans: MONAI dictionary transforms whose errors name the file and the remedy.

Each may be called alone, on dictionaries that hold other keys, as MONAI Label does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import (
    LoadImage,
    LoadImaged,
    MapTransform,
    Orientation,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
)
from monai.utils import ImageMetaKey, convert_to_dst_type, convert_to_tensor

from samora_monai.data.modality import SUGGESTED_MODALITY, suggested_modality
from samora_monai.data.nifti_reader import NiftiReader
from samora_monai.data.scaling import ScanScaling
from samora_monai.data.scans import holds_one_series
from samora_monai.data.slice_reader import CONTENT_ABOVE, SLICE_CONTENT
from samora_monai.errors import InputError, MissingFileError, one_line

AFFINE_TOLERANCE = 1e-3  # mm
_SINGULAR = 1e-5  # ratio of singular values; headers hold float32, so that a singular matrix is not exactly singular
_DEFAULT_SCALING = ScanScaling()


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Raise any error of the body as an `InputError` with the name of the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the reader of each format has its own exception classes
        raise InputError(f"cannot read '{path}': {one_line(error)}") from error


class LoadCase(LoadImage):
    """`LoadImage` whose errors are one sentence with the name of the file."""

    def __init__(self, image_only: bool = True) -> None:
        super().__init__(image_only=image_only)
        self.register(NiftiReader())  # of the readers of a suffix, the last registered one is used

    def __call__(self, filename, reader: ImageReader | None = None):
        """Read a volume file or the folder of a DICOM series.

        Raises:
            MissingFileError: the file does not exist.
            InputError: the file is damaged, or is not a readable image of real numbers, or the folder holds more than
                one DICOM series or two slices at one position.
        """
        if isinstance(filename, str | os.PathLike):
            path = Path(filename).expanduser()
            if not filename or not path.exists():  # MONAI Label reads an unknown image from "", which Path makes "."
                raise MissingFileError(f"scan '{filename}' does not exist")
            if path.is_dir():
                holds_one_series(path)
        with reading(filename):
            return super().__call__(filename, reader)


class LoadCased(LoadImaged):
    """Dictionary version of `LoadCase`, with the arguments and the return types of `LoadImaged`."""

    def __init__(self, keys: KeysCollection, image_only: bool = True, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, image_only=image_only, allow_missing_keys=allow_missing_keys)
        self._loader = LoadCase(image_only)


class CheckCased(MapTransform):
    """Check a loaded case, channel first, and return it unchanged, but for the order of a label's axes.

    Each of `keys` must hold one finite 3-D volume `[1, X, Y, Z]` whose affine can be inverted. A label, if there is
    one, must have the shape and the affine (to 0.001) of the first of them, and integer values in `[0, num_classes)`.
    A label on the same grid whose axes are flipped or permuted gets the axes of the image.

    Args:
        keys: keys of the images; the key of the label may follow.
        num_classes: number of classes with background; `None` allows 0 to 255.
        label_key: key of the label, which is not checked where it is absent or still a path.
    """

    def __init__(self, keys: KeysCollection, num_classes: int | None = None, label_key: str = "label") -> None:
        super().__init__(keys)
        self.num_classes = num_classes
        self.label_key = label_key

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the items of `data`, or raise an `InputError` that names the file if a check fails."""
        d = dict(data)
        for key in self.key_iterator(d):
            kind = "label" if key == self.label_key else "image"
            _check_volume(d[key], kind)
            _check_geometry(d[key], kind)
            finite = torch.isfinite(d[key])
            if not finite.all():
                raise InputError(
                    f"{kind} '{_name(d[key])}' has {int((~finite).sum())} voxels that are NaN or infinite; "
                    "replace them by finite values"
                )
        label = d.get(self.label_key)
        if isinstance(label, MetaTensor):
            _check_volume(label, "label")
            d[self.label_key] = label = _with_axes_of(d[self.first_key(d)], label)
            _check_same_grid(d[self.first_key(d)], label)
            _check_values(label, self.num_classes)
        return d


class ScaleScand(MapTransform):
    """Scale grey values to [0, 1].

    CT: the window in HU becomes [0, 1]. MR: two percentiles of the whole volume become 0 and 1, or z-scores of the
    volume or of each slice from -3 to 3 become 0 to 1. Values outside are clipped; a constant MR volume, or slice under
    z-scores of slices, becomes zeros. If the values suggest the other modality, its name is added to the metadata under
    `SUGGESTED_MODALITY`.

    Z-scores of air depend on what else is in the volume or slice, so that they do not show which slices are empty.
    Under them the metadata holds `SLICE_CONTENT`, an array `[slices]` with the fraction of the pixels of each that
    percentiles would scale to more than `CONTENT_ABOVE`.

    Args:
        keys: keys of the images.
        scaling: modality, window, percentiles, intensity and, for z-scores of slices, the slice axis.
    """

    def __init__(self, keys: KeysCollection, scaling: ScanScaling = _DEFAULT_SCALING) -> None:
        super().__init__(keys)
        self.modality = scaling.modality
        self.scale: Callable = (
            ScaleIntensityRange(*scaling.window, 0.0, 1.0, clip=True)
            if scaling.modality == "CT"
            else ScaleIntensityRangePercentiles(*scaling.percentiles, 0.0, 1.0, clip=True)
        )
        self.z_scores = scaling.modality == "MR" and scaling.intensity != "percentiles"
        self.in_plane = tuple(axis for axis in (1, 2, 3) if axis != scaling.slice_axis + 1)  # of [1, X, Y, Z]
        self.z_score_axes = self.in_plane if scaling.intensity == "slice_zscore" else (1, 2, 3)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """`[1, X, Y, Z]` in HU or grey values -> the same shape, float32 in [0, 1]."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            lowest = float(image.min())
            constant = self.modality == "MR" and lowest == float(image.max())
            # clamp: where both percentiles have the same grey level, MONAI shifts without clipping
            d[key] = torch.zeros_like(image) if constant else self.scale(image).clamp(0, 1)
            if self.z_scores:
                content = (d[key] > CONTENT_ABOVE).float().mean(self.in_plane).flatten().cpu().numpy()
                d[key] = _scale_z_scores(image, self.z_score_axes)
                if isinstance(d[key], MetaTensor):
                    d[key].meta[SLICE_CONTENT] = content
            if isinstance(d[key], MetaTensor) and (suggested := suggested_modality(self.modality, lowest)):
                d[key].meta[SUGGESTED_MODALITY] = suggested
        return d


def _scale_z_scores(image: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Scale z-scores over `axes` from [-3, 3] to [0, 1], clipped; 0 where all values over `axes` are equal."""
    plain = convert_to_tensor(image, dtype=torch.float32, track_meta=False)
    std, mean = torch.std_mean(plain, axes, correction=0, keepdim=True)
    varies = plain.amax(axes, keepdim=True) > plain.amin(axes, keepdim=True)  # rounding makes std inexact
    scaled = torch.where(varies, (0.5 + (plain - mean) / (6 * std)).clamp(0, 1), 0.0)
    return convert_to_dst_type(scaled, image)[0]


def _check_volume(image: torch.Tensor, kind: str) -> None:
    if image.ndim != 4 or image.shape[0] != 1:
        spatial = list(image.shape[1:]) + [image.shape[0]] * (image.shape[0] > 1)
        raise InputError(
            f"{kind} '{_name(image)}' must be one 3-D volume, got shape {spatial}; give one 3-D volume per file"
        )


def _check_geometry(image: torch.Tensor, kind: str) -> None:
    if not isinstance(image, MetaTensor):
        return
    finite = torch.isfinite(image.affine).all()
    if not finite or torch.linalg.matrix_rank(image.affine[:3, :3], rtol=_SINGULAR) < 3:
        raise InputError(
            f"{kind} '{_name(image)}' has an affine that cannot be inverted, {_affine_text(image)}; "
            "write the scanner's geometry into its header"
        )


def _with_axes_of(image: MetaTensor, label: MetaTensor) -> MetaTensor:
    """Flip and permute the axes of a label as those of the image, if their affines differ in nothing else."""
    turn = torch.linalg.solve(image.affine, label.affine)[:3, :3]
    axes = turn.round()
    same_grid = torch.allclose(turn, axes, atol=AFFINE_TOLERANCE) and torch.equal(axes @ axes.T, torch.eye(3).to(axes))
    if not same_grid or torch.equal(axes, torch.eye(3).to(axes)):
        return label
    codes = "".join(str(code) for code in nib.aff2axcodes(image.affine.numpy()))
    return cast(MetaTensor, Orientation(axcodes=codes, labels=None)(label))


def _check_same_grid(image: MetaTensor, label: MetaTensor) -> None:
    names = f"label '{_name(label)}' is not on the grid of image '{_name(image)}'"
    if image.shape != label.shape:
        raise InputError(
            f"{names}: shape {list(label.shape[1:])}, expected {list(image.shape[1:])}; resample it to the image"
        )
    difference = float((image.affine - label.affine).abs().max())
    if difference > AFFINE_TOLERANCE:
        raise InputError(
            f"{names}: affines differ by up to {difference:.3g} mm, label {_affine_text(label)}, "
            f"image {_affine_text(image)}; resample it to the image or correct its header"
        )


def _check_values(label: torch.Tensor, num_classes: int | None) -> None:
    highest = 255 if num_classes is None else num_classes - 1
    if bool(((label >= 0) & (label <= highest) & (label == label.round())).all()):
        return
    values = np.unique(label.cpu().numpy())  # torch.unique returns each NaN
    shown = ", ".join(f"{value:g}" for value in values[:12].tolist()) + (", ..." if len(values) > 12 else "")
    remedy = "give one integer per voxel"
    if num_classes is not None and (values == values.round()).all() and (values >= 0).all():
        remedy = f"use --num_classes {int(values.max()) + 1} or renumber the label"
    raise InputError(f"label '{_name(label)}' has the values {shown}, expected integers from 0 to {highest}; {remedy}")


def _name(image: torch.Tensor) -> str:
    meta = image.meta if isinstance(image, MetaTensor) else {}
    return str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "without a file name"))


def _affine_text(image: MetaTensor) -> str:
    return str(np.round(np.asarray(image.affine, dtype=float), 3)[:3].tolist())
