"""Labelled and unlabelled scans in a folder of any layout.

A datalist states its scans. Without one, every file that is named as a label is paired with the image of its name:

imagesTr/a_0000.nii.gz     labelsTr/a.nii.gz          nnU-Net, the Decathlon; also imagesVal/, labelsVal/
a.nii.gz                   labels/final/a.nii.gz      MONAI Label's studies; labels/original/ is not read
images/a.nii.gz            labels/a.nii.gz            also masks/, seg/, gt/, ...
a.nii.gz                   a_seg.nii.gz               also a_mask, a-label, segmentation-0 with volume-0
a/imaging.nii.gz           a/segmentation.nii.gz
a DICOM folder a/          labels/a.nii.gz
a DICOM folder p1/DICOM/   p1/seg.nii.gz

All other scans, pictures and arrays are unlabelled. Labelled scans in imagesVal/ are for validation; without any, those
in imagesTs/, which are unlabelled otherwise. The folder of a pipeline is not searched.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from samora_monai.data.datalist import (
    DEFAULT_DATALIST,
    Cases,
    class_names_of,
    find_cases,
    has_lists,
    modality_of,
    read_header,
)
from samora_monai.data.label_files import read_provenance
from samora_monai.data.scans import VOLUME_SUFFIXES, absolute, iterate_scans
from samora_monai.data.unlabeled import SUFFIXES, is_label_file, is_label_folder
from samora_monai.errors import InputError, MissingFileError
from samora_monai.report.provenance import quoted

_LABEL_WORD = re.compile(r"labels?|masks?|seg|segmentations?|gt|ground|truth|final|annotations?", re.IGNORECASE)
_IMAGE_WORD = re.compile(r"images?|imgs?|imaging|volumes?|vol|scans?|dicom|dcm|0000", re.IGNORECASE)
_SPLIT = re.compile(r"(Tr|Ts|Val|Unlabeled)$")  # imagesTr and labelsTr have the same scans
_HELD_OUT = ("Val", "Ts")
PLAN, PLAN_RECORD = "plan.yaml", Path("records", "plan.json")  # files in the folder of a pipeline
_BESIDE = "labels beside the scans, as a_seg.nii.gz or labels/a.nii.gz for a.nii.gz"
Words = tuple[str, ...]


def find_folder(folder: Path, results: Path | None = None, need_labels: bool = True) -> Cases:
    """Find the labelled and the unlabelled scans of a folder.

    Args:
        folder: the folder, or a datalist.
        results: folder of results that is not searched.
        need_labels: whether to refuse a folder without a labelled scan.

    Returns:
        the scans, absolute. `validation` is empty unless the folder says which scans to hold out; `unlabeled` holds
        volumes, pictures and arrays.

    Raises:
        MissingFileError: the folder does not exist.
        InputError: no labelled scan, two datalists to choose from, a label without an image, an image with two labels,
            or a scan that is listed twice.
    """
    root = absolute(folder)
    cases = _find(root, results)
    labelled = {os.path.realpath(case["image"]) for case in (*cases.training, *cases.validation)}
    rest = tuple(case for case in cases.unlabeled if os.path.realpath(case["image"]) not in labelled)
    cases = replace(cases, unlabeled=rest)  # a datalist may list a scan twice
    return _require_labels(cases) if need_labels else cases


def _find(root: Path, results: Path | None) -> Cases:
    if root.is_file() and root.suffix == ".json":
        return _with_test_list(root)
    if not root.is_dir():
        raise MissingFileError(f"'{root}' does not exist or is no folder; give the folder of the scans")
    if is_pipeline(root):
        raise InputError(f"'{root}' is the folder of a pipeline, not of scans; give the folder of the scans")
    lists = [file for file in sorted(root.glob("*.json")) if _is_datalist(file)]
    if root / DEFAULT_DATALIST in lists:
        return _with_test_list(root / DEFAULT_DATALIST)
    if len(lists) > 1:
        names = ", ".join(file.name for file in lists)
        raise InputError(
            f"'{root}' holds {len(lists)} datalists ({names}), expected one; give the file, e.g. '{lists[0]}'"
        )
    if lists:
        return _with_test_list(lists[0])
    return _search(root, [] if results is None else [absolute(results)])


def is_pipeline(folder: Path) -> bool:
    """Whether `samora plan` or `samora train` has made the files of a folder, also one of a plan that failed."""
    return (folder / PLAN).is_file() or (folder / PLAN_RECORD).is_file()


def _is_datalist(file: Path) -> bool:
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return file.name == DEFAULT_DATALIST  # find_cases raises the error
    return isinstance(header, dict) and has_lists(header)


def _with_test_list(file: Path) -> Cases:
    """The scans of a datalist; without a list `unlabeled`, the Decathlon's list `test`, which has no labels."""
    cases = find_cases(file.parent, file.name)
    test = read_header(file).get("test")
    if not cases.unlabeled and isinstance(test, list):
        paths = [entry.get("image") if isinstance(entry, dict) else entry for entry in test]
        scans = [absolute(file.parent / path) for path in paths if isinstance(path, str)]
        if missing := [scan for scan in scans if not scan.exists()]:
            raise MissingFileError(f"'{missing[0]}' in the list 'test' of '{file}' does not exist")
        cases = Cases(**{**vars(cases), "unlabeled": tuple({"image": str(scan)} for scan in scans)})
    return cases


def _require_labels(cases: Cases) -> Cases:
    if cases.training:
        return cases
    if cases.validation:
        count = len(cases.validation)
        raise InputError(f"each of {count} labelled scans in '{cases.source}' is for validation; move one to training")
    count = len(cases.unlabeled)
    budget = max(1, min(4, count - 1))
    raise InputError(
        f"no labelled scan in '{cases.source}': found {count} without labels, expected {_BESIDE}; "
        f"`samora select {quoted(cases.source)} --budget {budget}` names those to label first"
    )


@dataclass
class _Tree:
    """What a search has found."""

    images: list[Path] = field(default_factory=list)
    labels: list[Path] = field(default_factory=list)
    listed: list[Cases] = field(default_factory=list)  # of datalists in sub-folders


def _search(root: Path, exclude: Iterable[Path]) -> Cases:
    tree = _Tree()

    def include(path: Path) -> bool:
        if path.is_dir():
            if path.name == "original" and is_label_folder(path.parent.name):
                return False  # MONAI Label's own predictions
            if is_pipeline(path):
                return False
            if (file := path / DEFAULT_DATALIST).is_file() and _is_datalist(file):
                tree.listed.append(find_cases(file.parent, file.name))
                return False
        return True

    for path in iterate_scans(root, SUFFIXES, include, [str(folder.resolve()) for folder in exclude]):
        parts = path.relative_to(root).parts
        named = is_label_file(path.name) if path != root else False
        if named and not path.is_dir() and (read_provenance(path) or "").startswith("samora_monai:"):
            continue  # a prediction of this package, no reference
        label = (named and not path.is_dir()) or any(is_label_folder(part) for part in parts[:-1])
        if label and not path.name.lower().endswith(VOLUME_SUFFIXES):
            continue  # masks of pictures, which the fine-tuning does not take
        (tree.labels if label else tree.images).append(path)
    header = read_header(root / DEFAULT_DATALIST) if (root / DEFAULT_DATALIST).is_file() else {}
    pairs, unlabeled = _pair(root, tree.images, tree.labels)
    held_out = {name: [pair for pair in pairs if _part(root, pair["image"]) == name] for name in _HELD_OUT}
    validation = held_out["Val"] or held_out["Ts"]
    training = [pair for pair in pairs if pair not in held_out["Val"] + held_out["Ts"]]
    if held_out["Val"]:  # a test set beside it is predicted, and its labels are not used
        test = [{"image": pair["image"]} for pair in held_out["Ts"]]
        unlabeled = sorted([*unlabeled, *test], key=lambda case: case["image"])
    lists = {
        "training": [*training, *(case for cases in tree.listed for case in cases.training)],
        "validation": [*validation, *(case for cases in tree.listed for case in cases.validation)],
        "unlabeled": [*unlabeled, *(case for cases in tree.listed for case in cases.unlabeled)],
    }
    names = [class_names_of(header, str(root)), *(cases.class_names for cases in tree.listed)]
    modalities = [modality_of(header), *(cases.modality for cases in tree.listed)]
    if not any(lists.values()):
        raise InputError(f"no scan in '{root}'; looked for {', '.join(SUFFIXES)} and folders with a DICOM series")
    return Cases(
        **{name: tuple(scans) for name, scans in lists.items()},
        class_names=_one("class names", names, root),
        modality=_one("modalities", modalities, root),
        source=str(root),
    )


def _one(what: str, values: Iterable[Any], root: Path) -> Any:
    """The value that the datalists of a folder agree on, None if none states it."""
    stated = {value for value in values if value is not None}
    if len(stated) > 1:
        texts = " and ".join(map(str, stated))
        raise InputError(f"the datalists in '{root}' state different {what}, {texts}; train on each folder alone")
    return next(iter(stated), None)


def _pair(root: Path, images: list[Path], labels: list[Path]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Pair labels and images: by the words of folders and name, else as `_elsewhere` says."""
    case_of = {path: _case(root, path) for path in (*images, *labels)}
    equal: dict[Words, list[Path]] = defaultdict(list)
    same_name: dict[Words, list[Path]] = defaultdict(list)
    for image in images:
        equal[sum(case_of[image], ())].append(image)
        same_name[case_of[image].name].append(image)
    pairs: dict[Path, Path] = {}  # label of an image
    for label in labels:
        case = case_of[label]
        found = equal.get(sum(case, ()))
        if found is None:
            near = [image for image in same_name[case.name] if case.is_near(case_of[image])]
            if not near and not _words(_stem(label.name)):
                near = [image for image in images if image.is_relative_to(_folder_of(label, root))]
            found = [_only(label, near, same_name[case.name])]
        if len(found) > 1:
            raise InputError(
                f"label '{label}' fits '{found[0]}' and '{found[1]}'; a scan has one channel, so keep one image for "
                "each label"
            )
        image = found[0]
        if image in pairs:
            raise InputError(f"'{image}' has two labels, '{pairs[image]}' and '{label}'; keep one of them")
        if not image.is_dir() and not image.name.lower().endswith(VOLUME_SUFFIXES):
            raise InputError(f"'{image}' has the label '{label}' but is no volume file; convert it to NIfTI")
        pairs[image] = label
    labelled = [{"image": str(image), "label": str(pairs[image])} for image in sorted(pairs)]
    return labelled, [{"image": str(image)} for image in sorted(images) if image not in pairs]


def _only(label: Path, found: list[Path], same_name: list[Path]) -> Path:
    """The only image that was found for a label; raise an `InputError` if there is another number of them."""
    if len(found) == 1:
        return found[0]
    reason = "no image has its name"
    if found:
        reason = f"{len(found)} images have its name"
    elif same_name:
        reason = f"'{same_name[0]}' has its name, but is in the folder of another"
    raise InputError(
        f"label '{label}' belongs to no scan: {reason}; name it after its image, as a_seg.nii.gz or "
        "labels/a.nii.gz for a.nii.gz, or remove it"
    )


class _Case(NamedTuple):
    """The words of the folders and of the name of a scan, without those that mark an image or a label."""

    folders: Words
    name: Words

    def is_near(self, other: _Case) -> bool:
        """Whether one folder has all words of the other: siteA/p1 and siteB/p1 are two patients."""
        own, its = set(self.folders), set(other.folders)
        return own <= its or its <= own


def _case(root: Path, path: Path) -> _Case:
    """The words of a path; the name is that of the folder if the file's has no word of its own, as p1/seg.nii.gz."""
    parts = path.relative_to(root).parts or (path.name,)
    words = [*(_words(_SPLIT.sub(r"_\1", part)) for part in parts[:-1]), _words(_stem(parts[-1]))]
    words = [part for part in words if part] or [[]]
    return _Case(tuple(word for part in words[:-1] for word in part), tuple(words[-1]))


def _folder_of(label: Path, root: Path) -> Path:
    """The folder of a label, above those that are named for labels."""
    folders = (folder for folder in label.parents if folder == root or not is_label_folder(folder.name))
    return next(folders)


def _stem(name: str) -> str:
    """The name of a file without the suffix of its format."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def _words(name: str) -> list[str]:
    """The words of a name, without those that mark an image or a label."""
    name = unicodedata.normalize("NFC", name)  # macOS may decompose letters
    words = [word for word in re.split(r"[\W_]+", name) if word]
    return [word for word in words if not _LABEL_WORD.fullmatch(word) and not _IMAGE_WORD.fullmatch(word)]


def _part(root: Path, image: str) -> str | None:
    """`"Val"` for a scan below imagesVal/, `"Ts"` below imagesTs/."""
    matches = (_SPLIT.search(part) for part in Path(image).relative_to(root).parts[:-1])
    return next((match[1] for match in matches if match), None)
