"""Conversion of the papers' public data sets to NIfTI files with a Decathlon-style datalist, split as published.

    python -m samora_monai.public_data.prepare DATASET SOURCE DESTINATION

DATASET is synapse, synapse_10pct, la_4 or promise12_3, the names of the recipes. SOURCE is the folder of the unpacked
download; its form is detected. The same command resumes an interrupted preparation.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from samora_monai.data.datalist import DEFAULT_DATALIST, datalist_text
from samora_monai.data.label_files import check_output_dir, nifti_image, write_atomically
from samora_monai.data.scans import absolute, case_name
from samora_monai.errors import InputError, MissingFileError
from samora_monai.public_data.downloads import FORMS, Form, Found, Volume
from samora_monai.public_data.splits import SPLITS, Split
from samora_monai.replacing import replacing

UNFINISHED = f".{DEFAULT_DATALIST}"  # name of the datalist until all listed files are written


def prepare(dataset: str, source: str | os.PathLike, destination: str | os.PathLike) -> Path:
    """Write `images/`, `labels/`, and finally `dataset.json`, and return the path of the latter.

    Training cases are those of the published split, validation cases those that the papers test on. Other labelled
    cases of the download are listed as unlabeled, without labels. Prints one line for each case.

    Args:
        dataset: a key of `SPLITS`.
        source: folder with the download.
        destination: a new folder, or the folder of an interrupted preparation.

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
    lists = {
        "training": [_entry(case, "image", "label") for case in split.training],
        "validation": [_entry(case, "image", "label") for case in split.validation],
        "unlabeled": [_entry(case, "image") for case in sorted(found) if case not in cases],
    }
    description = "; ".join(filter(None, ("prepared by samora_monai.public_data.prepare", form.note)))
    root = absolute(destination)
    _claim(root, datalist_text(dataset, description, split.modality, split.class_names, lists))
    entries = [entry for listed in lists.values() for entry in listed]
    for number, entry in enumerate(entries, 1):
        case = case_name(entry["image"])
        count = f"[{number:{len(str(len(entries)))}}/{len(entries)}] {case}"
        if all((root / file).is_file() for file in entry.values()):
            print(f"{count}: already there", flush=True)
            continue
        image, label, affine = _checked(case, found[case](), split)
        for part, array in (("label", label), ("image", image)):
            if part in entry:
                write_atomically(nifti_image(array, affine), root / entry[part])
        print(f"{count}: {' x '.join(map(str, image.shape))}", flush=True)
    if (root / UNFINISHED).exists():
        os.replace(root / UNFINISHED, root / DEFAULT_DATALIST)
    return root / DEFAULT_DATALIST


def find_cases_of(dataset: str, source: Path) -> tuple[Form, Found]:
    """Return the form of the data set in `source`, and its cases; raise an `InputError` unless there is one form."""
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


def _entry(case: str, *parts: str) -> dict[str, str]:
    return {part: f"{part}s/{case}.nii.gz" for part in parts}


def _claim(root: Path, text: str) -> None:
    """Reserve `root` for this datalist: a new or empty folder, or one that is reserved for the same datalist."""
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
    if image.shape[2] != (expected := split.num_slices.get(case, image.shape[2])):
        raise InputError(f"{case} has {image.shape[2]} slices, expected {expected} as published; get it again")
    if case in split.slices:
        image, label = (array[..., list(split.slices[case])] for array in (image, label))
    if (image == np.round(image)).all() and abs(image).max() < 2**15:
        image = image.astype(np.int16)
    return image, label, affine


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
