"""Names and values of the segments of a DICOM SEG.

MONAI Label gives the entry at position i of the client's list to the i-th value that is present. Where an organ is
absent from a scan, every later one would have the name of its neighbour. Here a name belongs to a value, and, as a
DICOM SEG numbers its segments without gaps, a value to a name when it is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samora_monai.errors import InputError


def entries_by_value(
    values: Sequence[int], entries: Sequence[Mapping[str, Any]], classes: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Return one entry for each value that is present, in this order.

    An entry belongs to the value that it states (`labelID` or `idx`); in a list of all segments, as 3D Slicer sends it,
    to that of its position. A shorter list says only which segments are there: they have the names of the classes.

    Args:
        values: the values of the label that are present, without 0, ascending.
        entries: those of the client, with `name` and possibly `color` and `description`.
        classes: names of the model's classes by value.
    """
    stated = [entry.get("labelID", entry.get("idx")) for entry in entries]
    by_name = {str(entry.get("name", "")).casefold(): entry for entry in entries}
    whole = len(entries) >= max(values, default=0)
    if sorted(map(str, stated)) == sorted(map(str, range(1, len(entries) + 1))) or (
        not whole and set(values) <= set(stated)
    ):
        chosen = dict(zip(stated, entries, strict=True))
    elif whole:
        chosen = dict(enumerate(entries, 1))
    else:
        known = {value: name for value, name in classes.items() if value in values}
        chosen = {value: dict(by_name.get(name.casefold(), {})) for value, name in known.items()}
        if len(known) < len(values) == len(entries):
            chosen = dict(zip(values, entries, strict=True))
    model = {"model_name": entries[0]["model_name"]} if entries and "model_name" in entries[0] else {}
    names = {value: classes.get(value, f"segment {value}") for value in values}
    return [model | {"name": names[value]} | dict(chosen.get(value, {})) for value in values]


def dicom_seg_by_value(classes: Mapping[int, str]) -> Callable[..., str]:
    """Return MONAI Label's function that writes a DICOM SEG, with names by value.

    Its result raises `InputError` if the label is empty, or if dcmqi has written nothing.
    """
    from monai.transforms import LoadImage
    from monailabel.datastore.utils.convert import nifti_to_dicom_seg

    @functools.wraps(nifti_to_dicom_seg)
    def write(series: str, label: str, label_info: list[dict[str, Any]] | None, *args: Any, **kwargs: Any) -> str:
        values = [int(value) for value in np.unique(np.asarray(LoadImage(image_only=True)(label))) if value]
        if not values:
            raise InputError("the label is empty, and a DICOM SEG needs at least one segment; label an organ first")
        file = nifti_to_dicom_seg(series, label, entries_by_value(values, label_info or [], classes), *args, **kwargs)
        if not file or not Path(file).is_file():
            raise InputError("dcmqi could not make a DICOM SEG of the label; does its grid equal that of the series?")
        return str(file)

    return write


def label_by_name(classes: Mapping[int, str]) -> Callable[..., str]:
    """Return MONAI Label's function that converts a series, with the classes' values for those of a DICOM SEG.

    Its result raises `InputError` if the SEG has a segment that is no class.
    """
    import pydicom
    import SimpleITK
    from monailabel.datastore.utils.convert import dicom_to_nifti

    values = {name.casefold(): value for value, name in classes.items()}

    @functools.wraps(dicom_to_nifti)
    def convert(series: str, is_seg: bool = False) -> str:
        file = str(dicom_to_nifti(series, is_seg))
        if not is_seg or not values:
            return file
        part = next(path for path in sorted(Path(series).iterdir()) if path.is_file())
        segments = pydicom.dcmread(part, stop_before_pixels=True).SegmentSequence
        by_number = {int(segment.SegmentNumber): str(segment.SegmentLabel) for segment in segments}
        if unknown := [name for name in by_number.values() if name.casefold() not in values]:
            raise InputError(
                f"segment {unknown[0]!r} of the DICOM SEG in '{series}' is no class of the model, which has "
                f"{', '.join(classes.values())}; remove that SEG from the server, or rename its segment"
            )
        label = SimpleITK.ReadImage(file)
        found = SimpleITK.GetArrayFromImage(label)
        renumbered = np.zeros_like(found)
        for number, name in by_number.items():
            renumbered[found == number] = values[name.casefold()]
        image = SimpleITK.GetImageFromArray(renumbered)
        image.CopyInformation(label)
        SimpleITK.WriteImage(image, file, True)
        return file

    return convert
