"""Cases in the public downloads of Synapse, LA and PROMISE12, in each published form.

Cases are found without reading them, and checked when they are read. Arrays are returned as in NIfTI: `[X, Y, Z]`, with
an affine to RAS in mm.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from samora_monai.data.any_image import open_hdf5
from samora_monai.data.transforms import AFFINE_TOLERANCE, LoadCase
from samora_monai.errors import InputError

Volume = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, label, affine
Found = dict[str, Callable[[], Volume]]  # case name -> function that reads the case

# published label values -> those of the prepared labels
_BTCV = dict.fromkeys(range(14), 0) | {1: 1, 2: 2, 3: 3, 4: 4, 6: 5, 7: 6, 8: 7, 11: 8}  # the eight organs of SAMed
_SAMED = {value: value for value in range(9)}
_ONE = {0: 0, 1: 1, 255: 1}  # one organ, which is 255 in the challenge's files of LA
_WINDOW = (-125.0, 275.0)  # HU that became 0 and 1 in the npz and h5 files of TransUNet and SAMed
_LA_AFFINE = np.diag([-0.625, -0.625, 0.625, 1.0])  # axes to L, P and S; the challenge states 0.625 mm


@dataclass(frozen=True)
class Form:
    """One form in which a data set is published."""

    files: str  # names of its files, for messages
    find: Callable[[Path], Found]  # finds its cases in a folder
    note: str  # what this form lacks, for the datalist


def _find_btcv(source: Path) -> Found:
    images = _named(source, r"img(\d{4})\.nii(\.gz)?")
    labels = _named(source, r"label(\d{4})\.nii(\.gz)?")
    return {f"case{number}": read for number, read in _pairs(images, labels, _BTCV).items()}


def _find_transunet(source: Path) -> Found:
    slices: dict[str, dict[int, Path]] = {}
    for name, file in _named(source, r"(case\d{4}_slice\d{3})\.npz").items():
        slices.setdefault(name[:8], {})[int(name[-3:])] = file
    found: Found = {case: partial(_read_slices, files) for case, files in slices.items()}
    volumes = _named(source, r"(case\d{4})\.npy\.h5")
    return found | {case: partial(_read_h5_hu, file) for case, file in volumes.items()}


def _read_slices(files: dict[int, Path]) -> Volume:
    first = files[min(files)]
    if missing := sorted(set(range(max(files) + 1)) - set(files)):
        raise InputError(f"slice {missing[0]:03d} of the case of '{first}' is missing; get the whole download")
    pairs = []
    for number in sorted(files):
        try:
            with np.load(files[number], allow_pickle=False) as arrays:
                pairs.append((arrays["image"], arrays["label"]))
        except Exception as error:  # damaged zip files raise many types
            raise InputError(f"'{files[number]}' has no arrays image and label, or is damaged; get it again") from error
        if not pairs[-1][0].shape == pairs[-1][1].shape == pairs[0][0].shape or pairs[-1][0].ndim != 2:
            raise InputError(f"'{files[number]}' is no slice of the size of '{first}'; get it again")
    image, label = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    return _as_hu(image, label, first)


def _read_h5_hu(file: Path) -> Volume:
    return _as_hu(*_read_h5(file), file)


def _as_hu(image: np.ndarray, label: np.ndarray, file: Path) -> Volume:
    """`[Z, Y, X]` in [0, 1] -> `[X, Y, Z]` in integer HU, so that one window suits every form."""
    if image.min() < -0.5 or image.max() > 1.5:  # interpolation of the 224 x 224 slices overshoots
        raise InputError(
            f"'{file}' has values from {image.min():g} to {image.max():g}, expected 0 to 1; "
            "give SAMed's preprocessed files"
        )
    low, high = _WINDOW
    grey = np.round(np.clip(image, 0, 1).transpose(2, 1, 0) * (high - low) + low)
    return grey.astype(np.int16), _renumber(label.transpose(2, 1, 0), _SAMED, file), np.eye(4)


def _find_uamt(source: Path) -> Found:
    return {case: partial(_read_uamt, file) for case, file in _by_folder(source, "mri_norm2.h5").items()}


def _read_uamt(file: Path) -> Volume:
    image, label = _read_h5(file)
    return image.astype(np.float32), _renumber(label, _ONE, file), _LA_AFFINE


def _find_la_challenge(source: Path) -> Found:
    return _pairs(_by_folder(source, "lgemri.nrrd"), _by_folder(source, "laendo.nrrd"), _ONE)


def _find_promise12(source: Path) -> Found:
    labels = _named(source, r"(Case\d{2})_segmentation\.mhd")
    # the image is the one beside the label: the test set has files of the same names
    images = {case: image for case, label in labels.items() if (image := label.with_name(f"{case}.mhd")).is_file()}
    return _pairs(images, labels, _ONE)


_SYNAPSE = (
    Form("img0001.nii.gz and label0001.nii.gz", _find_btcv, ""),
    Form(
        "case0005_slice000.npz and case0001.npy.h5",
        _find_transunet,
        "from SAMed's preprocessed files, which have no geometry and are clipped to [-125, 275] HU: "
        "axes and 1 mm spacing are nominal, give distances in voxels",
    ),
)
FORMS = {
    "synapse": _SYNAPSE,
    "synapse_10pct": _SYNAPSE,
    "la_4": (
        Form(
            "<case>/mri_norm2.h5",
            _find_uamt,
            "from UA-MT's files: cropped around the atrium, z-scores, 0.625 mm as the challenge states",
        ),
        Form(
            "<case>/lgemri.nrrd and laendo.nrrd",
            _find_la_challenge,
            "from the challenge's files: whole scans, where the published results are on UA-MT's crops",
        ),
    ),
    "promise12_3": (Form("Case00.mhd and Case00_segmentation.mhd", _find_promise12, ""),),
}


def _named(source: Path, pattern: str) -> dict[str, Path]:
    """Map the first group of the pattern to the file below `source` whose name matches."""
    found: dict[str, Path] = {}
    for folder, subfolders, names in os.walk(source, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if match := re.fullmatch(pattern, name):
                _add(found, match[1], Path(folder, name))
    return found


def _by_folder(source: Path, name: str) -> dict[str, Path]:
    """Map the name of a folder below `source` to its file of this name."""
    found: dict[str, Path] = {}
    for file in sorted(source.rglob(name)):
        _add(found, file.parent.name, file)
    return found


def _add(found: dict[str, Path], case: str, file: Path) -> None:
    if (other := found.setdefault(case, file)) != file:
        raise InputError(f"'{other}' and '{file}' are both {case}; give the folder of one download")


def _pairs(images: dict[str, Path], labels: dict[str, Path], numbers: dict[int, int]) -> Found:
    for case in labels.keys() - images.keys():
        raise InputError(f"label '{labels[case]}' has no image; get the whole download")
    return {case: partial(_read_pair, images[case], label, numbers) for case, label in labels.items()}


def _read_pair(image: Path, label: Path, numbers: dict[int, int]) -> Volume:
    grey, organs = (LoadCase(image_only=True)(file) for file in (image, label))
    if float((grey.affine - organs.affine).abs().max()) > AFFINE_TOLERANCE:
        raise InputError(f"label '{label}' is not on the grid of '{image}': their affines differ; get them again")
    return grey.numpy(), _renumber(organs.numpy(), numbers, label), grey.affine.numpy()


def _read_h5(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with open_hdf5(file) as content:
            return content["image"][:], content["label"][:]
    except (OSError, KeyError) as error:
        raise InputError(f"'{file}' has no arrays image and label, or is damaged; get it again") from error


def _renumber(label: np.ndarray, numbers: dict[int, int], file: Path) -> np.ndarray:
    """Map label values by a table, which must contain them all."""
    values = np.unique(label)
    if unknown := [f"{value:g}" for value in values.tolist() if value not in numbers]:
        raise InputError(
            f"label '{file}' has the value {unknown[0]}, expected one of {', '.join(map(str, numbers))}; get it again"
        )
    table = np.zeros(256, np.uint8)
    table[list(numbers)] = list(numbers.values())
    return table[label.astype(np.uint8)]
