"""Tiny files on disk for the data tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def write_nifti() -> Callable[..., Path]:
    def write(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.zeros((4, 5, 3), np.int16) if array is None else array
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
        return path

    return write


@pytest.fixture
def write_dicom() -> Callable[..., None]:
    """Write `[Z, Y, X]` as files without extension and without a UID of their own, as some archives export them."""
    import itk

    def write(folder: Path, array: np.ndarray, series: str = "", z: float = 30.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(len(array)):
            image = itk.image_from_array(array[k : k + 1])
            image.SetSpacing((0.8, 0.9, 2.5))
            image.SetOrigin((-10.0, -20.0, z + 2.5 * k))
            header = image.GetMetaDataDictionary()
            header["0008|0060"], header["0020|000e"], header["0020|0013"] = "CT", series, str(k)
            gdcm = itk.GDCMImageIO.New()
            gdcm.KeepOriginalUIDOn()
            writer = itk.ImageFileWriter[type(image)].New(
                Input=image, FileName=str(folder / f"IM{series}_{k}"), ImageIO=gdcm
            )
            writer.Update()

    return write
