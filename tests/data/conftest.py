"""Small files on disk for the tests of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.data.dicom import write_dicom


@pytest.fixture
def write_nifti() -> Callable[..., Path]:
    def write(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.zeros((4, 5, 3), np.int16) if array is None else array
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
        return path

    return write


@pytest.fixture
def volumes(tmp_path, write_nifti):
    """Two volumes of different shape in [0, 1]; the label is on the slices 2 and 3 of the first, 0 of the second."""
    rng = np.random.default_rng(0)
    arrays, data = [], []
    for name, shape, slices in (("a", (10, 14, 6), (2, 3)), ("b", (13, 9, 4), (0,))):
        image = rng.random(shape, dtype=np.float32)
        label = np.zeros(shape, np.uint8)
        for k in slices:
            label[..., k] = rng.integers(0, 4, shape[:2])
        arrays.append((image, label))
        data.append(
            {
                "image": str(write_nifti(tmp_path / f"{name}.nii.gz", image)),
                "label": str(write_nifti(tmp_path / f"{name}_l.nii.gz", label)),
            }
        )
    return data, arrays


@pytest.fixture(name="write_dicom")
def dicom_writer() -> Callable[..., None]:
    """`write_dicom`."""
    return write_dicom
