"""DICOM series on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_dicom(folder: Path, array: np.ndarray, series: str = "", z: float = 30.0, modality: str = "CT") -> None:
    """Write `[Z, Y, X]` as files without extension and without a UID of their own, as some archives export them."""
    import itk

    folder.mkdir(parents=True, exist_ok=True)
    for k in range(len(array)):
        image = itk.image_from_array(array[k : k + 1])
        image.SetSpacing((0.8, 0.9, 2.5))
        image.SetOrigin((-10.0, -20.0, z + 2.5 * k))
        header = image.GetMetaDataDictionary()
        header["0008|0060"], header["0020|000e"], header["0020|0013"] = modality, series, str(k)
        gdcm = itk.GDCMImageIO.New()
        gdcm.KeepOriginalUIDOn()
        writer = itk.ImageFileWriter[type(image)].New(
            Input=image, FileName=str(folder / f"IM{series}_{k}"), ImageIO=gdcm
        )
        writer.Update()
