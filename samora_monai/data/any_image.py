"""Reading and scaling unlabelled images of any format: MONAI dictionary transforms.

Volumes and pictures are returned with the same axes, so that they can be mixed: slices along the last axis, and the
others in the order of RAS where the file states its geometry. A picture is taken for a slice in radiological display,
with the patient's right on its left and the front on top.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, MapTransform, Orientation
from monai.utils import ImageMetaKey
from PIL import Image, ImageSequence

from samora_monai.data.modality import SUGGESTED_MODALITY
from samora_monai.data.scaling import ScanScaling
from samora_monai.data.transforms import CheckCased, LoadCase, ScaleScand, reading
from samora_monai.data.unlabeled import format_of
from samora_monai.errors import InputError, MissingFileError

_DEFAULT_SCALING = ScanScaling()
PICTURES = ("PNG", "JPEG", "TIFF")
ARRAYS = ("npy", "npz", "HDF5")
_FORMAT, _STORED = "format", "stored_dtype"  # keys in the metadata, from the loader for the scaling
_PICTURE_AFFINE = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))  # LPS
_SLICES_LAST = ("ASR", "RSA", "RAS")  # axis codes by slice axis; the other axes keep their order
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of red, green and blue: ITU-R BT.601


class LoadUnlabeledd(MapTransform):
    """Read a file of any of `unlabeled.FORMATS`, or the folder of a DICOM series, as one checked volume.

    NIfTI, MHA, NRRD and DICOM are reoriented to RAS, then `slice_axis` is moved to the end. PNG and JPEG become one
    slice, TIFF one slice for each page; colours become their luminance, transparency is ignored. Arrays of npy, npz and
    HDF5 have no geometry: their axes keep their order, except that the slice axis is moved to the end.

    Args:
        keys: keys that hold a path.
        array_key: name of the array in npz and HDF5 files; ignored if a file holds a single array.
        array_slice_axis: slice axis of `[X, Y, Z]` arrays, 0 to 2 or -3 to -1; default: the axis that differs when the
            other two are equally long, else the shortest; the last axis of a cube.
        slice_axis: slice axis of files that state their geometry, as in `ScanScaling`.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        array_key: str = "image",
        array_slice_axis: int | None = None,
        slice_axis: int = 2,
    ) -> None:
        super().__init__(keys)
        if isinstance(array_slice_axis, bool) or array_slice_axis not in (None, *range(-3, 3)):
            raise InputError(
                f"array_slice_axis must be 0, 1 or 2, got {array_slice_axis!r}; leave it out to take the shortest axis"
            )
        self.array_key = array_key
        self.array_slice_axis = array_slice_axis
        self._load_volume = LoadCase(image_only=True)
        self._channel_first = EnsureChannelFirst()
        self._to_ras = Orientation(axcodes="RAS", labels=None)
        self.slice_axis = ScanScaling(slice_axis=slice_axis).slice_axis  # checks it
        self._cut_along = Orientation(axcodes=_SLICES_LAST[slice_axis], labels=None)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Path -> `MetaTensor [1, X, Y, Z]`, slices along Z, float32, values as stored.

        Raises:
            MissingFileError: the file does not exist.
            InputError: the file cannot be read, or is not one volume or picture of finite values.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            image = self._read(os.fspath(d[key]))
            has_axes = image.meta[_FORMAT] not in (*PICTURES, *ARRAYS)
            d[key] = (self._cut_along if has_axes else self._to_ras)(CheckCased(key)({key: image})[key])
        return d

    def _read(self, path: str) -> MetaTensor:
        if not os.path.exists(path):
            raise MissingFileError(f"'{path}' does not exist")
        kind = format_of(path)
        if kind in PICTURES:
            image = _volume(*_read_picture(path, paged=kind == "TIFF"), _PICTURE_AFFINE, path)
        elif kind in ARRAYS:
            array = _slices_last(_read_array(path, kind, self.array_key), self.array_slice_axis)
            image = _volume(array, array.dtype, torch.eye(4, dtype=torch.float64), path)
        else:
            image = cast(MetaTensor, self._channel_first(self._load_volume(path)))
        image.meta[_FORMAT] = kind
        return image


class ScaleUnlabeledd(MapTransform):
    """Scale images of `LoadUnlabeledd` to [0, 1].

    Pictures: 8-bit values are divided by 255, wider integers and floats are scaled by `percentiles`. Arrays (npy, npz,
    HDF5) are unchanged if in [0, 1]. All others, also images that another loader has read, are scaled as by
    `ScaleScand`. Under z-scores of MR, which do not depend on the scale of the stored values, so are all.

    Args:
        keys: keys of the images, which have their slices along Z.
        scaling: scaling of volumes and arrays; pictures use its percentiles.
    """

    def __init__(self, keys: KeysCollection, scaling: ScanScaling = _DEFAULT_SCALING) -> None:
        super().__init__(keys)
        self._by_modality = ScaleScand("image", replace(scaling, slice_axis=2))
        self._by_percentiles = ScaleScand("image", replace(scaling, modality="MR", intensity="percentiles"))

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """`[1, X, Y, Z]`, values as stored -> the same shape, float32 in [0, 1]."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            meta = image.meta if isinstance(image, MetaTensor) else {}
            kind = meta.get(_FORMAT)
            if self._by_modality.z_scores:
                d[key] = self._by_modality({"image": image})["image"]
            elif kind in PICTURES and meta[_STORED] == "uint8":
                d[key] = image / 255
            elif kind in ARRAYS and bool(image.min() >= 0) and bool(image.max() <= 1):
                d[key] = image
            else:
                scale = self._by_percentiles if kind in PICTURES else self._by_modality
                d[key] = scale({"image": image})["image"]
            if kind in PICTURES:
                d[key].meta.pop(SUGGESTED_MODALITY, None)  # the modality has no effect on pictures
        return d


def _volume(array: np.ndarray, stored: np.dtype, affine: torch.Tensor, path: str) -> MetaTensor:
    """`[X, Y, Z]` -> `[1, X, Y, Z]`, with the metadata for checks and scaling."""
    image = torch.from_numpy(np.array(array[None], dtype=np.float32, order="C"))
    return MetaTensor(image, affine=affine, meta={ImageMetaKey.FILENAME_OR_OBJ: path, _STORED: stored.name})


def _read_picture(path: str, paged: bool) -> tuple[np.ndarray, np.dtype]:
    """Return grey values `[W, H, pages]`, and the type of the stored values."""
    with reading(path), Image.open(path) as file:  # Pillow, because ITK pads some truncated files
        pages = [_pixels(page) for page in (ImageSequence.Iterator(file) if paged else [file])]
    sizes = {page.shape[:2] for page in pages}
    if len(sizes) > 1:
        raise InputError(f"'{path}' has pages of {len(sizes)} sizes, expected one; give each size a file of its own")
    grey = [page if page.ndim == 2 else page[..., :3] @ _LUMA for page in pages]
    return np.stack([page.T for page in grey], axis=-1), np.result_type(*pages)


def _pixels(page: Image.Image) -> np.ndarray:
    """Return `[H, W]`, grey, or `[H, W, 3 or 4]`, red, green, blue and alpha."""
    if page.mode in ("1", "LA"):
        return np.asarray(page.convert("L"))
    if len(page.getbands()) > 2 or page.mode in ("P", "PA"):
        return np.asarray(page if page.mode == "RGBA" else page.convert("RGB"))
    return np.asarray(page)


def _read_array(path: str, kind: str, key: str) -> np.ndarray:
    """Return an array `[X, Y]` or `[X, Y, Z]` of real numbers."""
    with reading(path):
        if kind == "npy":
            with open(path, "rb") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        elif kind == "npz":
            with np.load(path, allow_pickle=False) as arrays:
                array = arrays[_choose(path, arrays.files, key)]
        else:
            with open_hdf5(path) as content:
                names: list[str] = []
                content.visititems(lambda name, node: names.append(name) if hasattr(node, "shape") else None)
                array = np.asarray(content[_choose(path, names, key)][()])
    if array.dtype.kind not in "biuf":
        raise InputError(f"'{path}' holds values of type {array.dtype}, expected real numbers")
    if array.ndim not in (2, 3) or array.size == 0:
        raise InputError(
            f"'{path}' holds an array of shape {list(array.shape)}, expected [X, Y] or [X, Y, Z]; "
            "give one slice or volume per file"
        )
    return array


def open_hdf5(path: str | os.PathLike) -> Any:
    """Open an HDF5 file as `h5py.File`; raise an `InputError` if h5py is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"reading '{path}' needs h5py; run pip install 'samora_monai[prepare]'") from error
    return h5py.File(path)


def _choose(path: str, names: list[str], key: str) -> str:
    if key in names:
        return key
    if len(names) == 1:
        return names[0]
    raise InputError(
        f"'{path}' has no array '{key}' but {', '.join(sorted(names)) or 'none at all'}; name one with --array_key"
    )


def _slices_last(array: np.ndarray, axis: int | None) -> np.ndarray:
    """`[X, Y]` -> `[X, Y, 1]`; `[X, Y, Z]` with the slice axis moved to the end."""
    if array.ndim == 2:
        return array[..., None]
    if axis is None:
        shape = array.shape
        odd = [i for i in range(3) if shape[i - 1] == shape[i - 2] != shape[i]]
        axis = odd[0] if odd else min((2, 1, 0), key=shape.__getitem__)  # the last of equally long axes
    return np.moveaxis(array, axis, -1)
