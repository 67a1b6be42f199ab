"""The scans that a user points at: volume files, DICOM series, folders of either.

A DICOM series is named by its folder, as `monai.transforms.LoadImage` reads it. Series are told apart by the rules of
MONAI's `ITKReader`, because that reader silently takes the first series of a folder and drops the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from samora_monai.errors import InputError, MissingFileError

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
_LOOKED_FOR = f"volume files ({', '.join(VOLUME_SUFFIXES)}) or folders with a DICOM series"


def case_name(path: str | os.PathLike) -> str:
    """Name of a scan: the file name without its volume suffix, or the name of a DICOM series' folder."""
    name = Path(path).name
    for suffix in VOLUME_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def absolute(path: str | os.PathLike) -> Path:
    """Absolute path without `~` and `..`, links kept, so that two spellings of one path are equal."""
    return Path(os.path.abspath(Path(path).expanduser()))


def relative_case(path: str | os.PathLike, root: str | os.PathLike) -> Path:
    """Sub-folder of `root` that holds the scan, joined with its case name.

    The case name alone if `path` is `root` itself or lies outside of it.
    """
    path, root = absolute(path), absolute(root)
    if path == root or not path.is_relative_to(root):
        return Path(case_name(path))
    return path.parent.relative_to(root) / case_name(path)


def find_scans(path: str | os.PathLike, results: str | os.PathLike | None = None) -> list[dict[str, str]]:
    """List the scans at `path`, sorted by path, hidden files and folders skipped.

    Args:
        path: a volume file, a folder with one DICOM series, or a folder tree with volume files and DICOM folders.
        results: folder that the labels of these scans are written to; if it is in the tree, it is not searched.

    Returns:
        `[{"image": absolute path of the volume file or of the DICOM folder}, ...]`, never empty.

    Raises:
        MissingFileError: `path` does not exist.
        InputError: nothing found, a file that is no volume, two series in one folder, two scans whose results would
            get the same name, or results that would be written among the scans.
    """
    root = absolute(path)
    if not root.exists():
        raise MissingFileError(f"'{root}' does not exist; give {_LOOKED_FOR}")
    if root.is_file():
        if not _is_volume(root):
            raise InputError(
                f"'{root}' is not a volume file ({', '.join(VOLUME_SUFFIXES)}); a DICOM series is given by its folder"
            )
        return [{"image": str(root)}]

    ours = [] if results is None else [os.path.realpath(absolute(results))]
    if os.path.realpath(root) in ours:
        raise InputError(
            f"results would be written among the scans in '{root}', where the next run takes them for scans; "
            "choose another folder with --output_dir, a sub-folder for example"
        )
    scans = sorted(walk(root, passed_over=ours))
    if not scans:
        raise InputError(f"no scan in '{root}'; looked for {_LOOKED_FOR} in it and its sub-folders")
    named: dict[Path, Path] = {}
    for scan in scans:
        other = named.setdefault(relative_case(scan, root), scan)
        if other != scan:
            raise InputError(f"results of '{other}' and '{scan}' would get the same name; rename or move one of them")
    return [{"image": str(scan)} for scan in scans]


def walk(
    root: Path,
    suffixes: tuple[str, ...] = VOLUME_SUFFIXES,
    wanted: Callable[[Path], bool] = lambda path: True,
    passed_over: Iterable[str] = (),
) -> Iterator[Path]:
    """Files and DICOM folders in the tree at `root`, in no order; hidden ones are skipped.

    Args:
        root: a folder; searched whatever `wanted` says of it.
        suffixes: ends of the names of the files, in lower case.
        wanted: asked once of each sub-folder, before it is searched, and of each file.
        passed_over: real paths of folders that are not searched.

    Raises:
        InputError: two DICOM series in one folder.
    """
    visited = set(passed_over)  # links to folders are followed, but never in a circle
    for folder, subfolders, files in os.walk(root, followlinks=True):
        if os.path.realpath(folder) in visited:
            subfolders.clear()
            continue
        visited.add(os.path.realpath(folder))
        shown = (name for name in sorted(subfolders) if not name.startswith("."))
        subfolders[:] = [name for name in shown if wanted(Path(folder, name))]
        others = []
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(folder, name)
            if not name.lower().endswith(suffixes):
                others.append(path)
            elif wanted(path):
                yield path
        if any(_is_dicom(path) for path in others) and _holds_one_series(Path(folder)):
            yield Path(folder)


def scan_files(scan: str | os.PathLike) -> list[Path]:
    """The files that hold a scan: those of a DICOM folder, the header and the voxels of an `.mhd`, else one file."""
    path = absolute(scan)
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    if path.suffix.lower() == ".mhd":  # the voxels are in a file beside the header
        return sorted(file for file in path.parent.iterdir() if file.stem == path.stem and file.is_file())
    return [path]


def fingerprint(scan: str | os.PathLike) -> list[tuple[str, int, int]]:
    """Name, size in bytes and time of change in ns of each file of a scan; equal as long as the scan is unchanged.

    Raises:
        MissingFileError: the scan does not exist or cannot be read.
    """
    try:
        stats = [(file.name, file.stat()) for file in scan_files(scan)]
    except OSError as error:
        raise MissingFileError(f"'{absolute(scan)}' does not exist or cannot be read: {error.strerror}") from error
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def _is_dicom(path: Path) -> bool:
    """Whether the file is DICOM: by its preamble; GDCM is asked only where the name allows DICOM without a preamble."""
    if _is_volume(path) or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM":
        return True
    if not head or path.suffix.lower() not in ("", ".dcm", ".ima"):
        return False
    import itk  # costs seconds

    return bool(itk.GDCMImageIO.New().CanReadFile(str(path)))


def _holds_one_series(folder: Path) -> bool:
    """Whether the DICOM files are images (not reports or structure sets); more than one series is an error."""
    import itk  # costs seconds

    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)
    names.AddSeriesRestriction("0008|0021")
    names.SetDirectory(str(folder))
    series = list(names.GetSeriesUIDs())
    if len(series) > 1:
        sizes = " + ".join(str(len(names.GetFileNames(uid))) for uid in series)
        raise InputError(
            f"DICOM folder '{folder}' holds {len(series)} series ({sizes} files), expected one; "
            "move each series into a folder of its own"
        )
    return len(series) == 1
