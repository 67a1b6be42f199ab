"""Writing predicted label maps: uint8 NIfTI in the geometry of the scan, atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from monai.utils import ImageMetaKey, MetaKeys
from nibabel.arrayproxy import ArrayProxy

from samora_monai.data.scans import absolute, relative_case
from samora_monai.errors import InputError
from samora_monai.replacing import replacing

PROVENANCE = "label_provenance"  # key of a text for the header


class SaveLabeld(SaveImaged):
    """Write label maps as `<output_dir>/<sub-folder>/<case>_<postfix>.nii.gz`.

    Differs from `SaveImaged` in: writes are atomic; sub-folders are those of `data_root_dir`, and a case name keeps its
    dots; two scans never share a file; uint8; no log. The path is added to the metadata under `"saved_to"`. A text of
    up to 79 characters under the key `PROVENANCE` is written to the header, for `read_provenance`.

    Args:
        keys: keys of label maps `[1, X, Y, Z]`, integers 0 to 255, on the grid of the scan.
        output_dir: folder of the results.
        data_root_dir: folder of the scans whose sub-folders are kept; default: all results in one folder.
        output_postfix: end of the file name.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike,
        data_root_dir: str | os.PathLike = "",
        output_postfix: str = "seg",
    ) -> None:
        super().__init__(keys, output_dir=Path(output_dir), output_postfix=output_postfix, output_dtype=np.uint8)
        self.output_dir = absolute(output_dir)
        self.data_root_dir = data_root_dir
        self.output_postfix = output_postfix
        self._scan_of_file: dict[Path, str] = {}

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Write the files; raise an `InputError` if one cannot be written or is the result of another scan."""
        d = dict(data)
        for key in self.key_iterator(d):
            label: MetaTensor = d[key]
            assert label.ndim == 4 and label.shape[0] == 1, f"expected a label map [1, X, Y, Z], got {label.shape}"
            scan = str(label.meta[ImageMetaKey.FILENAME_OR_OBJ])
            file = self.file_of(scan)
            if (other := self._scan_of_file.setdefault(file, scan)) != scan:
                raise InputError(f"results of '{other}' and '{scan}' would both be '{file}'; rename one of the scans")
            array = label.as_tensor()[0].to(torch.uint8).cpu().numpy()
            # ITK and nibabel place a NIfTI scan without codes differently; without codes, its label follows both
            code = 0 if label.meta.get("qform_code") == label.meta.get("sform_code") == 0 else 1
            image = nifti_image(array, np.asarray(label.affine.cpu(), dtype=np.float64), code)
            image.header["descrip"] = str(d.get(PROVENANCE, "")).encode()
            write_atomically(image, file)
            label.meta[MetaKeys.SAVED_TO] = str(file)
        return d

    def file_of(self, scan: str) -> Path:
        """Return the label file of a scan."""
        case = relative_case(scan, self.data_root_dir or Path(scan).parent)
        return self.output_dir / case.parent / f"{case.name}_{self.output_postfix}.nii.gz"


def read_provenance(file: Path) -> str | None:
    """Return the text that `SaveLabeld` wrote to the header; `None` if the file is absent, truncated or no NIfTI.

    Fast: it reads the header and the last four bytes, where gzip stores the uncompressed size.
    """
    try:
        image = nib.Nifti1Image.from_filename(file)
        with file.open("rb") as packed:
            packed.seek(-4, os.SEEK_END)
            size = int.from_bytes(packed.read(), "little")
    except Exception:  # nibabel raises many types for truncated files
        return None
    assert isinstance(image.dataobj, ArrayProxy)  # as for every image from a file
    voxels = int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    if size != (image.dataobj.offset + voxels) % 2**32:
        return None
    return image.header["descrip"].item().decode(errors="replace")


def check_output_dir(path: str | os.PathLike) -> Path:
    """Create a folder if needed, and return its absolute path; raise an `InputError` unless it can be written."""
    folder = absolute(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"cannot write to output folder '{folder}': {error.strerror}; choose another folder with --output_dir"
        ) from error
    return folder


def nifti_image(array: np.ndarray, affine: np.ndarray, code: int = 1) -> nib.Nifti1Image:
    """Return an image in mm whose qform, which ITK reads, and sform, which others read, are both `affine`."""
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=code)
    image.set_sform(affine, code=code)
    image.header.set_xyzt_units("mm")
    return image


def write_atomically(image: nib.Nifti1Image, file: Path) -> None:
    """Save an image so that an interruption leaves no incomplete file; raise an `InputError` if it cannot be saved."""
    try:
        with replacing(file) as unfinished:
            nib.save(image, unfinished)
    except OSError as error:
        raise InputError(f"cannot write '{file}': {error.strerror or error}") from error
