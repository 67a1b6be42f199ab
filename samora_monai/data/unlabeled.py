"""Finding scans and pictures for training without labels, in folders of mixed formats.

Files and folders whose names mark them as label maps are skipped: an expert trained on label maps reaches a low loss
but is useless.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from samora_monai.data.datalist import DEFAULT_DATALIST, find_cases, has_lists
from samora_monai.data.scans import absolute, find_scans, iterate_scans
from samora_monai.errors import InputError, MissingFileError

_FORMATS = {
    "NIfTI": (".nii.gz", ".nii"),
    "MHA": (".mha", ".mhd"),
    "NRRD": (".nrrd",),
    "npy": (".npy",),
    "npz": (".npz",),
    "HDF5": (".h5", ".hdf5"),
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "TIFF": (".tif", ".tiff"),
}
DICOM = "DICOM"  # a folder, without a suffix
FORMATS = (*_FORMATS, DICOM)
SUFFIXES = tuple(suffix for suffixes in _FORMATS.values() for suffix in suffixes)
_EXPECTED = f"files ({', '.join(SUFFIXES)}) or folders with a DICOM series"

HELD_OUT = "imagesVal"  # name of a folder, as in the data of the segmentation bundle
_LABEL_WORDS = "labels?|masks?|seg|segmentations?|gt"
_LABEL_FOLDER = re.compile(rf"labels.*|{_LABEL_WORDS}|ground[ _-]?truth|ground|annotations?", re.IGNORECASE)
_LABEL_FILE = re.compile(rf"(?:^|[^a-z])(?:{_LABEL_WORDS})(?:[^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class UnlabeledScans:
    """Scans and pictures for training without labels.

    Args:
        training: `{"image": absolute path, "format": one of FORMATS}` for each scan or picture, sorted by path.
        validation: the same, held out; may be empty.
        source: the roots.
        label_folders, label_files: what was skipped because of its name, such as the label maps of KiTS and LiTS.
        modality: `"CT"` or `"MR"`, as stated by datalists; `None` if none states it or they differ.
    """

    training: tuple[dict[str, str], ...]
    validation: tuple[dict[str, str], ...]
    source: str
    label_folders: tuple[str, ...] = ()
    label_files: tuple[str, ...] = ()
    modality: str | None = None

    def counts(self) -> dict[str, int]:
        """Number of scans of each format that occurs, training and validation together."""
        format_of_scan = {item["image"]: item["format"] for item in self.training + self.validation}
        found = Counter(format_of_scan.values())
        return {name: found[name] for name in FORMATS if found[name]}

    def without_held_out(self) -> UnlabeledScans:
        """Train on all scans, and score each epoch on them too, as where there is a single scan."""
        scans = {item["image"]: item for item in self.training + self.validation}
        return replace(self, training=tuple(scans.values()), validation=tuple(scans.values()))


def find_unlabeled(
    roots: str | os.PathLike | Sequence[str | os.PathLike],
    datalist: str | os.PathLike = DEFAULT_DATALIST,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> UnlabeledScans:
    """Find scans and pictures, and hold some of them out.

    Each root is one of

    - a file;
    - a folder with a datalist: its `unlabeled` and `training` images are used, its `validation` images are held out;
    - any other folder, also with a `dataset.json` without lists (nnU-Net's): the tree is searched, except for hidden
      files and folders, label folders (`labels...`, `masks`, `seg`, `gt`, `ground truth`, ...) and label files (with
      such a word in the name). A sub-folder with a datalist is treated as a root. Files below `imagesVal` are held out.

    A file that is found twice, also through a link, counts once, and is held out if it is held out once.

    Args:
        roots: one root or several, in any order.
        datalist: name of the datalist in its root, or its absolute path.
        validation_fraction: fraction to hold out of the other files and of datalists without `validation`, at least one
            file (not slice) if there are two; 0: none.
        seed: seed of the choice of held-out files.

    Raises:
        MissingFileError: a root, a listed file, or a datalist other than the default one does not exist.
        InputError: a root without scans or of an unknown format, an unreadable datalist, or a fraction out of range.
    """
    number = isinstance(validation_fraction, int | float) and not isinstance(validation_fraction, bool)
    if not number or not 0 <= validation_fraction < 1:
        raise InputError(
            f"validation_fraction must be at least 0 and below 1, got {validation_fraction!r}; "
            "use for example --validation_fraction 0.1"
        )
    paths = [absolute(root) for root in ([roots] if isinstance(roots, str | os.PathLike) else roots)]
    if not paths:
        raise InputError("no folder with unlabelled scans was given; give --unlabeled FOLDER")
    found = _Search()
    for path in sorted(paths):
        found.add_root(path, datalist)
    free = [key for key in sorted(found.free, key=found.free.__getitem__) if key not in found.listed]
    count = min(max(round(validation_fraction * len(free)), 1), len(free) - 1) if validation_fraction else 0
    chosen = [free[i] for i in np.random.default_rng(seed).permutation(len(free))[: max(count, 0)]]
    path_of = found.free | found.listed
    held_out = found.held_out.union(chosen)
    return UnlabeledScans(
        training=_items(path_of[key] for key in path_of.keys() - held_out),
        validation=_items(path_of[key] for key in held_out),
        source=", ".join(str(path) for path in sorted(paths)),
        label_folders=tuple(sorted(found.label_folders)),
        label_files=tuple(sorted(found.label_files)),
        modality=next(iter(found.modalities)) if len(found.modalities) == 1 else None,
    )


def find_images(path: str | os.PathLike, results: str | os.PathLike | None = None) -> list[dict[str, str]]:
    """List the scans at `path` as `find_scans`, without files and folders whose names mark them as label maps.

    One line is printed about what is left out.
    """
    labels: list[Path] = []

    def include(found: Path) -> bool:
        named = is_label_folder(found.name) if found.is_dir() else is_label_file(found.name)
        if named:
            labels.append(found)
        return not named

    try:
        return find_scans(path, results, include)
    finally:
        if labels:
            names = ", ".join(f"'{found.relative_to(absolute(path))}'" for found in labels[:3])
            more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
            print(f"left out, as their names mark them as label maps: {names}{more}", flush=True)


def format_of(path: str | os.PathLike) -> str:
    """Return the format of a file or DICOM folder, one of `FORMATS`; raise an `InputError` if it is unknown."""
    if os.path.isdir(path):
        return DICOM
    for name, suffixes in _FORMATS.items():
        if str(path).lower().endswith(suffixes):
            return name
    raise InputError(f"'{path}' is of no known format; expected {_EXPECTED}")


def is_label_folder(name: str) -> bool:
    """Whether the name of a folder marks its files as label maps."""
    return _LABEL_FOLDER.fullmatch(name) is not None


def is_label_file(name: str) -> bool:
    """Whether the name of a file marks it as a label map."""
    return _LABEL_FILE.search(name) is not None


@dataclass
class _Search:
    """A search and its results. The dictionaries map real paths to the alphabetically first path of a file."""

    free: dict[str, str] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)  # in a datalist, or held out by the name of a folder
    held_out: set[str] = field(default_factory=set)
    label_folders: set[str] = field(default_factory=set)
    label_files: set[str] = field(default_factory=set)
    modalities: set[str] = field(default_factory=set)  # as stated by datalists
    num_datalists: int = 0

    def add_root(self, root: Path, datalist: str | os.PathLike) -> None:
        if not root.exists():
            raise MissingFileError(f"'{root}' does not exist; give {_EXPECTED}")
        if root.is_file():
            _add(self.free, root)
        elif _is_listed(root, datalist):
            self.num_datalists += 1
            cases = find_cases(root, datalist)
            # without held-out scans in the list, `validation_fraction` applies
            into = self.listed if cases.validation else self.free
            for case in cases.unlabeled + cases.training + cases.validation:
                _add(into, case["image"])
            self.held_out.update(os.path.realpath(case["image"]) for case in cases.validation)
            if cases.modality is not None:
                self.modalities.add(cases.modality)
        else:
            before = self.num_datalists
            scans = list(iterate_scans(root, SUFFIXES, self._include))
            if not scans and self.num_datalists == before:
                labels = [path for path in self.label_folders | self.label_files if Path(path).is_relative_to(root)]
                only = f"; {len(labels)} files or folders are named as labels" if labels else ""
                raise InputError(f"nothing to learn from in '{root}'; looked for {_EXPECTED} in its tree{only}")
            for scan in scans:
                if HELD_OUT in scan.relative_to(root).parts[:-1]:
                    _add(self.listed, scan)
                    self.held_out.add(os.path.realpath(scan))
                else:
                    _add(self.free, scan)

    def _include(self, path: Path) -> bool:
        """Whether to search a sub-folder or take a file; a sub-folder with a datalist is added as a root."""
        if path.is_dir():
            if (path / DEFAULT_DATALIST).is_file() and _is_listed(path, DEFAULT_DATALIST):
                self.add_root(path, DEFAULT_DATALIST)
                return False
            if is_label_folder(path.name):
                self.label_folders.add(str(path))
                return False
        elif is_label_file(path.name):
            self.label_files.add(str(path))
            return False
        return True


def _add(paths: dict[str, str], path: str | os.PathLike) -> None:
    key = os.path.realpath(path)
    paths[key] = min(str(path), paths.get(key, str(path)))


def _is_listed(root: Path, datalist: str | os.PathLike) -> bool:
    """Whether to read this root by `find_cases`: it has a datalist with lists, or lacks the datalist that was given."""
    file = root / Path(datalist).expanduser()
    if not file.is_file():
        return str(datalist) != DEFAULT_DATALIST
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return True  # find_cases raises the error
    return not isinstance(header, dict) or has_lists(header)


def _items(paths) -> tuple[dict[str, str], ...]:
    return tuple({"image": path, "format": format_of(path)} for path in sorted(paths))
