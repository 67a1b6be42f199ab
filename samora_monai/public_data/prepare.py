"""Converting the public data sets of the papers to NIfTI files with a Decathlon-style datalist, split as published.

    python -m samora_monai.public_data.prepare DATASET SOURCE DESTINATION

DATASET is synapse, synapse_10pct, la_4 or promise12_3, the names of the recipes. SOURCE is the folder of the unpacked
download; its form is detected. An interrupted preparation can be resumed by the same command.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from samora_monai.data.datalist import DEFAULT_DATALIST
from samora_monai.data.label_files import check_output_dir, write_atomically
from samora_monai.data.scans import absolute
from samora_monai.errors import InputError, MissingFileError
from samora_monai.public_data.downloads import FORMS, Form, Found, Volume
from samora_monai.public_data.splits import SPLITS, Split
from samora_monai.replacing import replacing

UNFINISHED = f".{DEFAULT_DATALIST}"  # name of the datalist until all listed files are written


def prepare(dataset: str, source: str | os.PathLike, destination: str | os.PathLike) -> Path:
    """Write the cases of a data set to `destination`: `images/`, `labels/`, and finally `dataset.json`.

    Training cases are those of the published split, validation cases those that the papers test on. Other labelled
    cases of the download are listed as unlabeled, without labels. Prints one line for each case.

    Args:
        dataset: a key of `SPLITS`.
        source: folder with the download.
        destination: a new folder, or the folder of an interrupted preparation.

    Returns:
        The path of `dataset.json`.

    Raises:
        MissingFileError: the source does not exist, or lacks cases.
        InputError: unknown data set, a file that is not as published, or a destination that holds something else.
    """
    if dataset not in SPLITS:
        raise InputError(f"unknown data set {dataset!r}; choose one of {', '.join(SPLITS)}")
    split = SPLITS[dataset]
    form, found = find_cases_of(dataset, absolute(source))
    cases = [*split.training, *split.validation]
    if missing := [case for case in cases if case not in found]:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise MissingFileError(
            f"'{source}' lacks {len(missing)} of the {len(cases)} cases of {dataset}: {shown}; get the whole download"
        )
    header = _datalist(dataset, split, form, [case for case in sorted(found) if case not in cases])
    root = absolute(destination)
    _claim(root, header)
    entries = [*header["training"], *header["validation"], *header["unlabeled"]]
    for number, entry in enumerate(entries, 1):
        case = Path(entry["image"]).name.removesuffix(".nii.gz")
        count = f"[{number:{len(str(len(entries)))}}/{len(entries)}] {case}"
        if all((root / file).is_file() for file in entry.values()):
            print(f"{count}: already there", flush=True)
            continue
        volume = _checked(case, found[case](), split)
        _write(root, entry, volume)
        print(f"{count}: {' x '.join(map(str, volume[0].shape))}", flush=True)
    if (root / UNFINISHED).exists():
        os.replace(root / UNFINISHED, root / DEFAULT_DATALIST)
    return root / DEFAULT_DATALIST


def find_cases_of(dataset: str, source: Path) -> tuple[Form, Found]:
    """Return the form of the data set in `source`, and its cases.

    Raises:
        MissingFileError: the folder does not exist.
        InputError: the folder holds none of the forms, or more than one.
    """
    if not source.is_dir():
        raise MissingFileError(f"'{source}' does not exist or is not a folder; give the folder of the download")
    forms = [(form, found) for form in FORMS[dataset] if (found := form.find(source))]
    if not forms:
        expected = ", or ".join(form.files for form in FORMS[dataset])
        raise InputError(f"no file of {dataset} in '{source}'; expected {expected}")
    if len(forms) > 1:
        raise InputError(
            f"'{source}' holds {dataset} in two forms, {' and '.join(form.files for form, _ in forms)}; "
            "give the folder of one of them"
        )
    return forms[0]


def _datalist(dataset: str, split: Split, form: Form, others: list[str]) -> dict[str, Any]:
    def entry(case: str, *parts: str) -> dict[str, str]:
        return {part: f"{part}s/{case}.nii.gz" for part in parts}

    return {
        "name": dataset,
        "description": "; ".join(filter(None, ("prepared by samora_monai.public_data.prepare", form.note))),
        "modality": {"0": split.modality},
        "labels": {str(value): name for value, name in enumerate(split.class_names)},
        "training": [entry(case, "image", "label") for case in split.training],
        "validation": [entry(case, "image", "label") for case in split.validation],
        "unlabeled": [entry(case, "image") for case in others],
    }


def _claim(root: Path, header: dict[str, Any]) -> None:
    """Reserve `root` for this datalist: a new or empty folder, or one that is reserved for the same datalist."""
    text = json.dumps(header, indent=1) + "\n"
    for file in (root / DEFAULT_DATALIST, root / UNFINISHED):
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"'{root}' already exists and holds something else; give a new folder as DESTINATION")
    check_output_dir(root)
    with replacing(root / UNFINISHED) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _checked(case: str, volume: Volume, split: Split) -> Volume:
    image, label, affine = volume
    if image.ndim != 3 or image.shape != label.shape:
        raise InputError(
            f"the image of {case} has the shape {list(image.shape)} and its label {list(label.shape)}, expected "
            "two equal volumes; get them again"
        )
    expected = split.num_slices.get(case, image.shape[2])
    if image.shape[2] != expected:
        raise InputError(f"{case} has {image.shape[2]} slices, expected {expected} as published; get it again")
    if case in split.slices:
        kept = list(split.slices[case])
        image, label = image[..., kept], label[..., kept]
    if (image == np.round(image)).all() and abs(image).max() < 2**15:
        image = image.astype(np.int16)
    return image, label, affine


def _write(root: Path, entry: dict[str, str], volume: Volume) -> None:
    image, label, affine = volume
    arrays = {"label": label, "image": image}
    for part in ("label", "image"):
        if part in entry:
            nifti = nib.Nifti1Image(arrays[part], affine)
            nifti.set_qform(affine, code=1)
            nifti.set_sform(affine, code=1)
            nifti.header.set_xyzt_units("mm")
            try:
                write_atomically(nifti, root / entry[part])
            except OSError as error:
                raise InputError(f"cannot write '{root / entry[part]}': {error.strerror or error}") from error


def main() -> None:
    """Prepare a data set from the command line."""
    parser = argparse.ArgumentParser(description="Turn a public download into NIfTI files and a datalist.")
    parser.add_argument("dataset", choices=SPLITS)
    parser.add_argument("source", help="folder with the unpacked download")
    parser.add_argument("destination", help="new folder, or that of an interrupted preparation")
    args = parser.parse_args()
    try:
        print(prepare(args.dataset, args.source, args.destination))
    except InputError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
