"""Facts about every scan, each read once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Orientation
from scipy import ndimage
from tqdm import tqdm

from samora_monai.data import CheckCased, LoadCased, LoadUnlabeledd
from samora_monai.data.any_image import ARRAYS, PICTURES
from samora_monai.data.unlabeled import DICOM, format_of
from samora_monai.errors import InputError, input_error
from samora_monai.inference.smoothing import components
from samora_monai.pipeline.at_hand import cores, free_memory

_MODALITY = "0008|0060"  # DICOM's Modality
_ONE_PIECE = 0.99  # of the voxels of a class
_SAMPLE = 1_000_000  # voxels that percentiles are estimated from
_READERS = 8  # scans that are read at a time, at most
_OF_A_SCAN = 4e9  # bytes, of a large labelled CT while it is read
QUANTILES = (0.5, 50.0, 99.5)
FOREGROUND_QUANTILES = (5.0, 95.0)


@dataclass(frozen=True)
class ScanFacts:
    """Facts about a scan, a picture or an array.

    Args:
        image: path.
        format: one of `unlabeled.FORMATS`.
        shape: number of voxels along R, A and S; of a picture width, height and pages.
        spacing: mm along R, A and S; None for pictures and arrays, which state none.
        orientation: axis codes as stored, e.g. `"LAS"`; None as above.
        lowest, highest: of the values.
        quantiles: percentiles `QUANTILES` of the values.
        modality: of the DICOM header, e.g. `"CT"`, `"MR"`, `"PT"`; None in other formats.
        label_values: values of the label map, sorted; None without a label.
        foreground: percentiles `FOREGROUND_QUANTILES` of the labelled voxels' values; None if there are none.
        seconds: time of one core to read the scan.
        in_one_piece: values of the label map of which the largest connected component has nearly all voxels.
    """

    image: str
    format: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    orientation: str | None
    lowest: float
    highest: float
    quantiles: tuple[float, ...]
    modality: str | None
    label_values: tuple[int, ...] | None
    foreground: tuple[float, float] | None
    seconds: float
    in_one_piece: tuple[int, ...] = ()

    @property
    def is_volume(self) -> bool:
        """Whether the file states its geometry, so that it can be segmented."""
        return self.spacing is not None


def look_at(scans: Sequence[Mapping[str, str]]) -> tuple[list[ScanFacts], list[str]]:
    """Read scans in parallel, with a progress bar.

    Args:
        scans: `{"image": path}` or `{"image": path, "label": path}` each.

    Returns:
        the facts of each scan that can be read, in order; and why each other scan without a label cannot.

    Raises:
        InputError: a labelled scan cannot be read, or its label is not on its grid.
    """
    facts, reasons = [], []
    threads = max(1, min(cores(), _READERS, int(free_memory("cpu") // _OF_A_SCAN)))
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(_look, scan) for scan in scans]
        bar = tqdm(zip(scans, futures, strict=True), "looking at scans", len(scans), unit="scan", disable=None)
        try:
            for scan, future in bar:
                try:
                    facts.append(future.result())
                except Exception as error:  # Compose wraps what a transform raises
                    mistake = input_error(error)
                    if mistake is None:
                        raise
                    if "label" in scan:
                        raise mistake from error
                    reasons.append(str(mistake))
        finally:
            pool.shutdown(cancel_futures=True)
    return facts, reasons


def _look(scan: Mapping[str, str]) -> ScanFacts:
    start = time.thread_time()
    kind = format_of(scan["image"])
    image, label = _read_labelled(scan) if "label" in scan else (LoadUnlabeledd()(dict(scan))["image"], None)
    affine = np.asarray(image.affine, dtype=float)
    stored = np.asarray(image.meta.get("original_affine", affine), dtype=float)
    has_geometry = kind not in (*PICTURES, *ARRAYS)
    values = image.numpy().ravel()
    labelled = values[:0] if label is None else image.numpy()[label.numpy() > 0]
    return ScanFacts(
        image=str(scan["image"]),
        format=kind,
        shape=cast(tuple[int, int, int], tuple(image.shape[1:])),
        spacing=_triple(np.linalg.norm(affine[:3, :3], axis=0)) if has_geometry else None,
        orientation="".join(str(code) for code in nib.aff2axcodes(stored)) if has_geometry else None,
        lowest=float(values.min()),
        highest=float(values.max()),
        quantiles=_percentiles(values, QUANTILES),
        modality=_dicom_modality(Path(scan["image"])) if kind == DICOM else None,
        label_values=None if label is None else tuple(int(value) for value in np.unique(label.numpy())),
        foreground=cast(tuple[float, float], _percentiles(labelled, FOREGROUND_QUANTILES)) if labelled.size else None,
        seconds=time.thread_time() - start,
        in_one_piece=() if label is None else _in_one_piece(label.numpy()[0]),
    )


def _in_one_piece(label: np.ndarray) -> tuple[int, ...]:
    found = []
    for number, box in enumerate(ndimage.find_objects(label.astype(np.int32)), 1):
        if box is None:
            continue
        _, sizes = components(label[box] == number)
        if sizes.max() >= _ONE_PIECE * sizes.sum():
            found.append(number)
    return tuple(found)


def _read_labelled(scan: Mapping[str, str]) -> tuple[MetaTensor, MetaTensor]:
    keys = ("image", "label")
    d: dict[Any, Any] = Compose([LoadCased(keys), EnsureChannelFirstd(keys), CheckCased(keys)])(dict(scan))
    to_ras = Orientation(axcodes="RAS", labels=None)
    return cast(MetaTensor, to_ras(d["image"])), cast(MetaTensor, to_ras(d["label"]))


def _percentiles(values: np.ndarray, quantiles: tuple[float, ...]) -> tuple[float, ...]:
    sample = values[:: max(1, values.size // _SAMPLE)]
    return tuple(float(value) for value in np.percentile(sample, quantiles))


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _dicom_modality(folder: Path) -> str | None:
    """The modality in the header of the first image of a series."""
    import itk  # slow to import

    reader = itk.GDCMImageIO.New()
    for file in sorted(folder.iterdir()):
        if file.is_file() and reader.CanReadFile(str(file)):
            reader.SetFileName(str(file))
            try:
                reader.ReadImageInformation()
            except RuntimeError as error:
                raise InputError(f"cannot read the header of '{file}'; copy it again or remove it") from error
            header = reader.GetMetaDataDictionary()
            return header[_MODALITY].strip() or None if header.HasKey(_MODALITY) else None
    return None
