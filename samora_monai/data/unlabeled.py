"""Scans and pictures to learn from without labels: everything readable below some folders.

Formats may be mixed. What is known to be a label map by its name is passed over, for an expert that learned to encode
label maps would look well trained and be useless.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samora_monai.data.datalist import DEFAULT_DATALIST, find_cases, has_lists
from samora_monai.data.scans import absolute, walk
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
DICOM = "DICOM"  # has no suffix: it is a folder
FORMATS = (*_FORMATS, DICOM)
SUFFIXES = tuple(suffix for suffixes in _FORMATS.values() for suffix in suffixes)
LOOKED_FOR = f"files ({', '.join(SUFFIXES)}) or folders with a DICOM series"

HELD_OUT = "imagesVal"  # a folder of this name, as the segmentation bundle's data has it
_LABEL_FOLDER = re.compile(
    r"labels.*|label|masks?|seg|segmentations?|gt|ground[ _-]?truth|ground|annotations?", re.IGNORECASE
)
_LABEL_WORD = re.compile(r"(?:^|[^a-z])(?:labels?|masks?|seg|segmentations?|gt)(?:[^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class UnlabeledScans:
    """What was found to learn from.

    Args:
        training: `{"image": absolute path, "format": one of FORMATS}` per scan or picture, sorted by path.
        validation: the same, held out; may be empty.
        source: the roots.
        passed_over: folders that were not searched, for their names say that they hold labels.
        label_files: files beside scans that were not taken, for their names say that they are labels (KiTS, LiTS).
        modality: what the datalists state, `"CT"` or `"MR"`; `None` if they state nothing, or both.
    """

    training: tuple[dict[str, str], ...]
    validation: tuple[dict[str, str], ...]
    source: str
    passed_over: tuple[str, ...] = ()
    label_files: tuple[str, ...] = ()
    modality: str | None = None

    def counts(self) -> dict[str, int]:
        """How many scans there are in each format that occurs, both parts together."""
        found = Counter(item["format"] for item in self.training + self.validation)
        return {name: found[name] for name in FORMATS if found[name]}


def find_unlabeled(
    roots: str | os.PathLike | Sequence[str | os.PathLike],
    datalist: str | os.PathLike = DEFAULT_DATALIST,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> UnlabeledScans:
    """Find scans and pictures, and hold some out.

    Each root is one of

    - a file;
    - a folder with a datalist: its `unlabeled` and `training` images train, its `validation` images are held out;
    - any other folder, also with a `dataset.json` that lists nothing (nnU-Net's): its whole tree is searched, hidden
      files and folders, label folders (`labels...`, `masks`, `seg`, `gt`, `ground truth`, ...) and label files (such a
      word in the name) excepted. A folder in it that has a `dataset.json` is read by that, and what is in a folder
      `imagesVal` is held out; of the rest `validation_fraction`, as of a datalist without `validation`.

    A file that is reached twice, also through a link, counts once; one that any datalist holds out is never trained on.

    Args:
        roots: one root or several; their order does not matter.
        datalist: the datalist's name in its root, or its absolute path.
        validation_fraction: part of the files (not slices) without a datalist that is held out, at least one if there
            are two; 0: none.
        seed: seed of that choice.

    Raises:
        MissingFileError: a root, a listed file, or a datalist other than the default one does not exist.
        InputError: a root without scans or of an unknown format, an unreadable datalist, or a fraction out of range.
    """
    is_number = isinstance(validation_fraction, int | float) and not isinstance(validation_fraction, bool)
    if not is_number or not 0 <= validation_fraction < 1:
        raise InputError(
            f"validation_fraction must be at least 0 and below 1, got {validation_fraction!r}; "
            "use for example --validation_fraction 0.1"
        )
    paths = [absolute(root) for root in ([roots] if isinstance(roots, str | os.PathLike) else roots)]
    if not paths:
        raise InputError("no folder with unlabelled scans was given; give --unlabeled FOLDER")
    found = _Found()
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
        passed_over=tuple(sorted(found.label_folders)),
        label_files=tuple(sorted(found.label_files)),
        modality=next(iter(found.modalities)) if len(found.modalities) == 1 else None,
    )


def format_of(path: str | os.PathLike) -> str:
    """The format of a file or DICOM folder, one of `FORMATS`.

    Raises:
        InputError: none of them.
    """
    if os.path.isdir(path):
        return DICOM
    for name, suffixes in _FORMATS.items():
        if str(path).lower().endswith(suffixes):
            return name
    raise InputError(f"'{path}' is of no known format; expected {LOOKED_FOR}")


@dataclass
class _Found:
    """Paths by their real path, the smallest one where a file was reached by several."""

    free: dict[str, str] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)  # in a datalist, held out or not
    held_out: set[str] = field(default_factory=set)
    label_folders: set[str] = field(default_factory=set)
    label_files: set[str] = field(default_factory=set)
    modalities: set[str] = field(default_factory=set)  # that datalists state

    def add_root(self, root: Path, datalist: str | os.PathLike) -> None:
        if not root.exists():
            raise MissingFileError(f"'{root}' does not exist; give {LOOKED_FOR}")
        if root.is_file():
            _add(self.free, root)
        elif _is_listed(root, datalist):
            cases = find_cases(root, datalist)
            # a list without held-out scans leaves the choice to `validation_fraction`
            into = self.listed if cases.validation else self.free
            for case in cases.unlabeled + cases.training + cases.validation:
                _add(into, case["image"])
            self.held_out.update(os.path.realpath(case["image"]) for case in cases.validation)
            if cases.modality is not None:
                self.modalities.add(cases.modality)
        else:
            before = len(self.listed)
            scans = list(walk(root, SUFFIXES, self._is_wanted))
            if not scans and len(self.listed) == before:
                labels = [path for path in self.label_folders | self.label_files if Path(path).is_relative_to(root)]
                only = f"; {len(labels)} files or folders are named as labels" if labels else ""
                raise InputError(f"nothing to learn from in '{root}'; looked for {LOOKED_FOR} in its tree{only}")
            for scan in scans:
                held_out = HELD_OUT in Path(scan).relative_to(root).parts[:-1]
                _add(self.listed if held_out else self.free, scan)
                if held_out:
                    self.held_out.add(os.path.realpath(scan))

    def _is_wanted(self, path: Path) -> bool:
        """Whether the walk goes on to `path`; a data set with a datalist of its own is read by that."""
        if path.is_dir():
            if (path / DEFAULT_DATALIST).is_file() and _is_listed(path, DEFAULT_DATALIST):
                self.add_root(path, DEFAULT_DATALIST)
                return False
            if _LABEL_FOLDER.fullmatch(path.name):
                self.label_folders.add(str(path))
                return False
        elif _LABEL_WORD.search(path.name):
            self.label_files.add(str(path))
            return False
        return True


def _add(paths: dict[str, str], path: str | os.PathLike) -> None:
    key = os.path.realpath(path)
    paths[key] = min(str(path), paths.get(key, str(path)))


def _is_listed(root: Path, datalist: str | os.PathLike) -> bool:
    """Whether `find_cases` is to read this root: it has a datalist with lists, or lacks one that was asked for."""
    file = root / Path(datalist).expanduser()
    if not file.is_file():
        return str(datalist) != DEFAULT_DATALIST
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return True  # find_cases says what is wrong with it
    return not isinstance(header, dict) or has_lists(header)


def _items(paths) -> tuple[dict[str, str], ...]:
    return tuple({"image": path, "format": format_of(path)} for path in sorted(paths))
