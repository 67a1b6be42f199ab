"""The cases of a data set: from a Decathlon-style datalist, or from folders with the Decathlon's names.

A datalist is JSON with lists `training`, `validation` and `unlabeled` of `{"image": ..., "label": ...}`; its paths are
relative to the data folder. nnU-Net's `dataset.json` names classes but lists no files; the folders list them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.data import load_decathlon_datalist

from samora_monai.data.scans import VOLUME_SUFFIXES, absolute, case_name, find_copy, find_scans, relative_case
from samora_monai.errors import InputError, MissingFileError
from samora_monai.settings import is_whole

DEFAULT_DATALIST = "dataset.json"
_LISTS = {"training": ("training",), "validation": ("validation", "val"), "unlabeled": ("unlabeled",)}
_LAYOUTS = f"{DEFAULT_DATALIST}, or folders imagesTr and labelsTr (and imagesVal, labelsVal, imagesUnlabeled)"
_MR_NAME = re.compile(r"mr|t[12]|flair|adc|dwi|pd\b|lge", re.IGNORECASE)  # the start of a word
_LABELS_EXAMPLE = '{"0": "background", "1": "liver"}'


@dataclass(frozen=True)
class Cases:
    """The scans of one data set; each list may be empty.

    Args:
        training, validation: `{"image": path, "label": path}` with absolute paths for each scan.
        unlabeled: `{"image": path}` for each scan.
        class_names: the name of each label value, background first; `None` if not stated.
        modality: `"CT"`, `"MR"`, or `None` if not stated or another one.
        source: the file or folder that the cases were read from.
    """

    training: tuple[dict[str, str], ...]
    validation: tuple[dict[str, str], ...]
    unlabeled: tuple[dict[str, str], ...]
    class_names: tuple[str, ...] | None
    modality: str | None
    source: str


def find_cases(
    dataset_dir: str | os.PathLike, datalist: str | os.PathLike = DEFAULT_DATALIST, num_labeled: int | None = None
) -> Cases:
    """Read the cases of `dataset_dir`.

    Args:
        dataset_dir: folder with a datalist, or with `imagesTr/`, `labelsTr/` and optionally `imagesVal/`, `labelsVal/`,
            `imagesUnlabeled/`. An image and its label have the same name; names of images may end in `_0000`.
        datalist: name of the datalist in that folder, or its absolute path.
        num_labeled: keep only this number of training scans, the first ones.

    Raises:
        MissingFileError: the folder, the datalist (unless it is the default) or a listed file is missing.
        InputError: no cases, an image without label or the reverse, a scan that is listed twice or a copy of which is,
            a malformed datalist, or `num_labeled` out of range.
    """
    root = absolute(dataset_dir)
    if not root.is_dir():
        raise MissingFileError(f"data folder '{root}' does not exist or is not a folder; give --dataset_dir FOLDER")
    file = root / Path(datalist).expanduser()
    if not file.is_file() and str(datalist) != DEFAULT_DATALIST:
        raise MissingFileError(f"datalist '{file}' does not exist; give its name in '{root}' or an absolute path")
    header = read_header(file) if file.is_file() else {}
    listed = has_lists(header)
    lists = {name: _read_list(file, root, header, name) for name in _LISTS} if listed else _read_folders(root)
    source = str(file if header else root)
    if not any(lists.values()):
        raise InputError(f"'{source}' lists no scans; expected {_LAYOUTS}")
    check_files(lists, source)
    available = len(lists["training"])
    if num_labeled is not None and (not is_whole(num_labeled, 1) or num_labeled > available):
        raise InputError(
            f"num_labeled must be a whole number from 1 to {available} (training scans in '{source}'), "
            f"got {num_labeled!r}; use --num_labeled {available} or leave it out"
        )
    return Cases(
        training=tuple(lists["training"][:num_labeled]),
        validation=tuple(lists["validation"]),
        unlabeled=tuple(lists["unlabeled"]),
        class_names=class_names_of(header, source),
        modality=modality_of(header),
        source=source,
    )


def volumes_of(dataset_dir: str | os.PathLike) -> list[dict[str, str]]:
    """List the unlabelled scans of a data set that can be segmented, without pictures and arrays; see `find_cases`."""
    unlabeled = find_cases(dataset_dir).unlabeled
    return [
        case for case in unlabeled if case["image"].lower().endswith(VOLUME_SUFFIXES) or os.path.isdir(case["image"])
    ]


def has_lists(header: Mapping[str, Any]) -> bool:
    """Whether a `dataset.json` lists cases; nnU-Net's does not."""
    return any(key in header for keys in _LISTS.values() for key in keys)


def datalist_text(
    name: str, description: str, modality: str, class_names: Sequence[str], lists: Mapping[str, list[dict[str, str]]]
) -> str:
    """Return the JSON text of a datalist; the paths in `lists` are relative to its folder."""
    labels = {str(value): class_name for value, class_name in enumerate(class_names)}
    header = {"name": name, "description": description, "modality": {"0": modality}, "labels": labels}
    return json.dumps(header | dict(lists), indent=1) + "\n"


def write_datalist(root: Path, text: str) -> Path:
    """Write a datalist as `dataset.json` in `root`, and return its path."""
    file = root / DEFAULT_DATALIST
    file.write_text(text, encoding="utf-8")
    return file


def read_header(file: Path) -> dict[str, Any]:
    """Return the content of a `dataset.json`; raise an `InputError` unless it is a JSON object."""
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"datalist '{file}' is not valid JSON: {error}") from error
    if not isinstance(header, dict) or not header:
        raise InputError(f"datalist '{file}' must hold an object with a list 'training', got {type(header).__name__}")
    return header


def _read_list(file: Path, root: Path, header: dict[str, Any], name: str) -> list[dict[str, str]]:
    key = next((key for key in _LISTS[name] if key in header), None)
    if key is None:
        return []
    parts = ("image",) if name == "unlabeled" else ("image", "label")
    entries = header[key] if isinstance(header[key], list) else [header[key]]
    for entry in entries:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(part), str) for part in parts):
            raise InputError(
                f"'{key}' in datalist '{file}' has the entry {json.dumps(entry)[:120]}; "
                f"expected one path each for {' and '.join(parts)}"
            )
    items = load_decathlon_datalist(file, True, key, base_dir=root) if entries else []
    return [{part: str(item[part]) for part in parts} for item in items]


def _read_folders(root: Path) -> dict[str, list[dict[str, str]]]:
    if not any((root / name).is_dir() for name in ("imagesTr", "imagesVal", "imagesUnlabeled")):
        raise InputError(f"no cases in '{root}'; expected {_LAYOUTS}")
    unlabeled = root / "imagesUnlabeled"
    return {
        "training": _pair(root / "imagesTr", root / "labelsTr"),
        "validation": _pair(root / "imagesVal", root / "labelsVal"),
        "unlabeled": find_scans(unlabeled) if unlabeled.is_dir() else [],
    }


def _pair(images: Path, labels: Path) -> list[dict[str, str]]:
    """Pair images and labels of equal relative path and name; nnU-Net's channel suffix `_0000` is optional."""
    missing = [folder for folder in (images, labels) if not folder.is_dir()]
    if len(missing) == 2:
        return []
    if missing:
        raise MissingFileError(f"folder '{missing[0]}' does not exist; images and labels belong in two folders")
    label_of = {relative_case(scan["image"], labels): scan["image"] for scan in find_scans(labels)}
    pairs = []
    for scan in find_scans(images):
        case = relative_case(scan["image"], images)
        if case not in label_of:
            case = case.with_name(case_name(scan["image"]).removesuffix("_0000"))
        if case not in label_of:
            raise InputError(f"image '{scan['image']}' has no label; expected a file named '{labels / case}.nii.gz'")
        pairs.append({"image": scan["image"], "label": label_of.pop(case)})
    if label_of:
        label = next(iter(label_of.values()))
        raise InputError(f"label '{label}' has no image in '{images}'; add the image or remove the label")
    return pairs


def check_files(lists: Mapping[str, Sequence[Mapping[str, str]]], source: str) -> None:
    """Check lists of cases, by name, that come from the file or folder `source`.

    Raises:
        MissingFileError: a listed file does not exist.
        InputError: an image is listed twice for training or validation, or one is a copy of the other.
    """
    paths = [path for items in lists.values() for item in items for path in item.values()]
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        more = f" and {len(missing) - 1} more listed files" if len(missing) > 1 else ""
        verb = "do" if more else "does"
        raise MissingFileError(f"'{missing[0]}'{more} in '{source}' {verb} not exist; paths are relative to its folder")
    list_of: dict[str, str] = {}  # by the real path of an image
    images = {name: [item["image"] for item in lists[name]] for name in ("training", "validation")}
    for name, listed in images.items():
        for image in listed:
            path = os.path.realpath(image)
            if list_of.get(path) == name:
                raise InputError(f"'{source}' lists '{image}' for {name} more than once; list each scan once")
            if path in list_of:
                raise InputError(f"'{image}' is in training and in validation of '{source}'; list each scan once")
            list_of[path] = name
    if pair := find_copy(images["training"], images["validation"]):
        raise InputError(
            f"'{pair[1]}' in validation of '{source}' is a copy of '{pair[0]}' in training; list each scan once"
        )


def class_names_of(header: dict[str, Any], source: str) -> tuple[str, ...] | None:
    """Return the names of the classes that a `dataset.json` states, background first; None if it states none."""
    labels = header.get("labels")
    if labels is None:
        return None
    try:
        pairs = list(labels.items())  # of the Decathlon: {"1": "liver"}
        if not all(str(key).isdecimal() for key in labels):  # of nnU-Net v2: {"liver": 1}
            pairs = [(value, name) for name, value in pairs]
        names = {int(value): str(name) for value, name in pairs}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"'labels' in '{source}' must name each label value, as in {_LABELS_EXAMPLE}") from error
    if sorted(names) != list(range(len(pairs))):
        found = ", ".join(map(str, sorted(names)))
        raise InputError(f"'labels' in '{source}' must number the classes 0, 1, 2, ... without gaps, got {found}")
    return tuple(names[value] for value in range(len(names)))


def modality_of(header: dict[str, Any]) -> str | None:
    """Return the modality that a `dataset.json` states, `"CT"` or `"MR"`; None if it states another one or none."""
    channels = header.get("modality", header.get("channel_names"))
    names = list(channels.values()) if isinstance(channels, dict) else [channels]
    words = {word for name in names for word in re.split(r"[^A-Za-z0-9]+", str(name or "")) if word}
    if "CT" in {word.upper() for word in words}:
        return "CT"
    if any(_MR_NAME.match(word) or word.upper().endswith("MRI") for word in words):
        return "MR"
    return None


def require_validation(cases: Cases) -> list[dict[str, str]]:
    """Return the validation cases; raise an `InputError` if there are none."""
    if not cases.validation:
        raise InputError(
            f"no validation scans in '{cases.source}'; add a list 'validation' to the datalist, "
            "or fill imagesVal/ and labelsVal/"
        )
    return list(cases.validation)
