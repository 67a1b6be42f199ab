"""Which scans are of the same patient: by DICOM headers, by names, and by their anatomy.

Names are split at `/`, `_`, `-`, `.` and spaces. The patient is what comes before and in the first part with a digit,
if more parts follow: `patient012` of `patient012_frame01`, none of `la_017`; `sub-03` is one wherever it occurs (BIDS).
If that leaves fewer than one patient for `MOST_SCANS` scans, the part is taken for the name of the data set or of a
folder, and the next part with a digit is added: `BraTS20_Training_001` of `BraTS20_Training_001_flair`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from monai.data import MetaTensor
from scipy import fft, ndimage
from torch import Tensor

from samora_monai.data.scans import absolute, relative_case
from samora_monai.data.unlabeled import SUFFIXES
from samora_monai.errors import InputError

MOST_SCANS = 4  # of a patient, in the mean
_SEPARATORS = re.compile(r"[/_\-. ]+")
_BIDS = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)(?=[/_]|$)")
_PATIENT_ID = "0010|0020"  # DICOM's Patient ID

VOXELS = 80_000  # of the reduced volumes whose anatomy is compared, at most
SAME_ANATOMY = 0.6  # correlation from which scans are taken for the same patient's
SURELY_SAME = 0.9  # the same where no other scan is left; between them is a doubt
_FINEST = 0.75  # mm, the smallest voxels of reduced volumes; the next are larger by _STEP
_STEP = 2**0.5
_SMALLEST = 8  # voxels of each side; flatter volumes have too little anatomy
_LOCAL = 5.0  # voxels, standard deviation of the window of the local contrast


def patients_of(scans: Sequence[str], root: Path, pattern: str | None = None) -> list[str]:
    """Return a name of the patient of each scan, equal for scans that are of one patient by header or name.

    Args:
        scans: paths.
        root: folder that the scans are in; names are read below it.
        pattern: regular expression that finds the patient in the path below `root`, in its first group if it has one;
            it replaces the rule for names.

    Raises:
        InputError: `pattern` is no regular expression.
    """
    if not all(absolute(scan).is_relative_to(absolute(root)) for scan in scans):  # a datalist elsewhere
        root = Path(os.path.commonpath([absolute(scan).parent for scan in scans]))
    cases = [str(relative_case(_without_suffix(scan), root)).replace("\\", "/") for scan in scans]
    named = _by_pattern(cases, pattern) if pattern else _by_name(cases)
    ids = {scan: patient_id for scan in scans if Path(scan).is_dir() and (patient_id := _patient_id(Path(scan)))}
    if len(ids) > 1 and len(set(ids.values())) == 1:
        ids = {}  # anonymised: one ID for all
    return [f"ID {ids[scan]}" if scan in ids else name for scan, name in zip(scans, named, strict=True)]


def _without_suffix(scan: str) -> str:
    return scan[: -len(next((suffix for suffix in SUFFIXES if scan.lower().endswith(suffix)), ""))] or scan


def _by_pattern(cases: Sequence[str], pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"patient_pattern {pattern!r} is no regular expression: {error}; e.g. '(sub-\\d+)'") from error
    found = [compiled.search(case) for case in cases]
    group = min(compiled.groups, 1)
    return [match[group] or case if match else case for match, case in zip(found, cases, strict=True)]


def _by_name(cases: Sequence[str]) -> list[str]:
    bids = [_BIDS.search(case) for case in cases]
    plain = [case.removesuffix("_0000") for case, found in zip(cases, bids, strict=True) if not found]
    names, depth = plain, 1
    while plain:
        names = [_prefix(case, depth) for case in plain]
        if names == plain or len(set(names)) * MOST_SCANS >= len(plain):
            break
        depth += 1
    rest = iter(names)
    return [found[1] if found else next(rest) for found in bids]


def _prefix(case: str, depth: int) -> str:
    """The parts of a name up to the part with a digit number `depth`; the whole name if it has fewer."""
    end = 0
    for part in _SEPARATORS.split(case):
        start = case.index(part, end)
        end = start + len(part)
        depth -= any(character.isdigit() for character in part)
        if depth == 0:
            return case[:end]
    return case


def _patient_id(folder: Path) -> str | None:
    """Patient ID in the header of the first image of a DICOM folder, None if it has none."""
    import itk  # slow to import

    reader = itk.GDCMImageIO.New()
    for file in sorted(folder.iterdir()):
        if file.is_file() and reader.CanReadFile(str(file)):
            reader.SetFileName(str(file))
            reader.ReadImageInformation()
            header = reader.GetMetaDataDictionary()
            return header[_PATIENT_ID].strip() or None if header.HasKey(_PATIENT_ID) else None
    return None


class Anatomy:
    """A reduced volume without its contrast: scans of one patient are similar after a translation.

    Args:
        volume: RAS volume `[1, X, Y, Z]` in [0, 1].
    """

    def __init__(self, volume: MetaTensor) -> None:
        plain = volume.as_tensor()[None].float().cpu()
        extent = [spacing * side for spacing, side in zip(volume.pixdim.tolist(), plain.shape[2:], strict=True)]
        self.level = 0
        while np.prod([side / self.spacing for side in extent]) > VOXELS:
            self.level += 1
        size = [max(1, round(side / self.spacing)) for side in extent]
        self.reduced = _resized(plain, size)

    @classmethod
    def restored(cls, reduced: Tensor, level: int) -> Anatomy:
        """The anatomy whose `reduced` and `level` were stored."""
        anatomy = cls.__new__(cls)
        anatomy.reduced, anatomy.level = reduced, level
        return anatomy

    @property
    def spacing(self) -> float:
        """Side of a voxel in mm."""
        return _FINEST * _STEP**self.level

    def at(self, level: int) -> np.ndarray | None:
        """The volume with its local contrast normalised, at this level or a coarser one; None if too small."""
        size = [round(side / _STEP ** (level - self.level)) for side in self.reduced.shape[2:]]
        if min(size) < _SMALLEST:
            return None
        volume = _resized(self.reduced, size)[0, 0].numpy().astype(np.float64)
        centred = volume - ndimage.gaussian_filter(volume, _LOCAL)
        contrast = np.sqrt(ndimage.gaussian_filter(centred**2, _LOCAL))
        return centred / (contrast + 1e-3)

    def likeness(self, other: Anatomy) -> float:
        """Highest correlation in [0, 1] over all translations that leave half of the smaller volume; 0 if too small."""
        level = max(self.level, other.level)
        a, b = self.at(level), other.at(level)
        if a is None or b is None:
            return 0.0
        size = [fft.next_fast_len(m + n, real=True) for m, n in zip(a.shape, b.shape, strict=True)]

        def summed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            """Sum of `x` times the translated `y`, for each translation."""
            return fft.irfftn(fft.rfftn(x, size) * fft.rfftn(y, size).conj(), size)

        ones_a, ones_b = np.ones_like(a), np.ones_like(b)
        norms = summed(a**2, ones_b) * summed(ones_a, b**2)
        overlap = summed(ones_a, ones_b)
        correlation = summed(a, b) / np.sqrt(norms.clip(1.0))
        return float(correlation[overlap >= 0.5 * min(a.size, b.size)].max(initial=0.0))


def _resized(volume: Tensor, size: Sequence[int]) -> Tensor:
    """`[1, 1, X, Y, Z]` -> `[1, 1, *size]`, smoothed by the mean where it becomes coarser."""
    if tuple(size) == tuple(volume.shape[2:]):
        return volume
    kernel = [max(1, side // target) for side, target in zip(volume.shape[2:], size, strict=True)]
    smooth = F.avg_pool3d(volume, kernel) if max(kernel) > 1 else volume
    return F.interpolate(smooth, size=tuple(size), mode="trilinear", align_corners=False)
