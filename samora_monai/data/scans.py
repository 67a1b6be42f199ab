"""Finding scans on disk: volume files, DICOM series, and folders of either.

A DICOM series is given by its folder, as `monai.transforms.LoadImage` reads it. Series are distinguished by the rules
of MONAI's `ITKReader`, because that reader silently takes the first series of a folder and drops the others.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from samora_monai.errors import InputError, MissingFileError, one_line

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
_SAMPLE = 4096  # bytes that are compared before whole files are
_POSITION = "0020|0032"  # DICOM's Image Position (Patient)
_EXPECTED = f"volume files ({', '.join(VOLUME_SUFFIXES)}) or folders with a DICOM series"


def case_name(path: str | os.PathLike) -> str:
    """Name of a scan: the file name without its volume suffix, or the name of a DICOM series' folder."""
    name = Path(path).name
    for suffix in VOLUME_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def absolute(path: str | os.PathLike) -> Path:
    """Absolute path without `~` and `..`, so that two spellings of one path are equal; links are kept."""
    return Path(os.path.abspath(Path(path).expanduser()))


def relative_case(path: str | os.PathLike, root: str | os.PathLike) -> Path:
    """Sub-folder of `root` and case name of a scan; only the case name if `path` is `root` itself or outside of it."""
    path, root = absolute(path), absolute(root)
    if path == root or not path.is_relative_to(root):
        return Path(case_name(path))
    return path.parent.relative_to(root) / case_name(path)


def find_scans(
    path: str | os.PathLike,
    results: str | os.PathLike | None = None,
    include: Callable[[Path], bool] = lambda path: True,
) -> list[dict[str, str]]:
    """List the scans at `path`, one or more `{"image": absolute path}`, sorted; hidden files and folders are skipped.

    Args:
        path: a volume file, a folder with one DICOM series, or a folder tree with volume files and DICOM folders.
        results: folder that the labels of these scans are written to; it is not searched.
        include: predicate for the files and sub-folders of a folder tree, see `iterate_scans`.

    Raises:
        MissingFileError: `path` does not exist.
        InputError: no scan, a file that is no volume, a folder with two DICOM series or with two slices at one
            position, two scans whose results would get the same name, or results that would be written among the scans.
    """
    root = absolute(path)
    if not root.exists():
        raise MissingFileError(f"'{root}' does not exist; give {_EXPECTED}")
    if root.is_file():
        if not root.name.lower().endswith(VOLUME_SUFFIXES):
            raise InputError(
                f"'{root}' is not a volume file ({', '.join(VOLUME_SUFFIXES)}); a DICOM series is given by its folder"
            )
        return [{"image": str(root)}]

    excluded = [] if results is None else [os.path.realpath(absolute(results))]
    if os.path.realpath(root) in excluded:
        raise InputError(
            f"results would be written among the scans in '{root}', where the next run takes them for scans; "
            "choose another folder with --output_dir, a sub-folder for example"
        )
    scans = sorted(iterate_scans(root, include=include, exclude=excluded))
    if not scans:
        raise InputError(f"no scan in '{root}'; looked for {_EXPECTED} in it and its sub-folders")
    scan_of: dict[Path, Path] = {}
    for scan in scans:
        if (other := scan_of.setdefault(relative_case(scan, root), scan)) != scan:
            raise InputError(f"results of '{other}' and '{scan}' would get the same name; rename or move one of them")
    return [{"image": str(scan)} for scan in scans]


def iterate_scans(
    root: Path,
    suffixes: tuple[str, ...] = VOLUME_SUFFIXES,
    include: Callable[[Path], bool] = lambda path: True,
    exclude: Iterable[str] = (),
) -> Iterator[Path]:
    """Iterate over the files and DICOM folders in a tree, without hidden ones; raise as `holds_one_series`.

    Args:
        root: the top folder, which is searched in any case.
        suffixes: file name suffixes to return, in lower case.
        include: predicate, called once for each sub-folder before it is searched and for each file.
        exclude: real paths of folders that are not searched.
    """
    visited = set(exclude)  # links to folders are followed, but each folder is searched once
    for folder, subfolders, files in os.walk(root, followlinks=True):
        if os.path.realpath(folder) in visited:
            subfolders.clear()
            continue
        visited.add(os.path.realpath(folder))
        visible = (name for name in sorted(subfolders) if not name.startswith("."))
        subfolders[:] = [name for name in visible if include(Path(folder, name))]
        others = []
        for path in (Path(folder, name) for name in sorted(files) if not name.startswith(".")):
            if not path.name.lower().endswith(suffixes):
                others.append(path)
            elif include(path):
                yield path
        if any(_is_dicom(path) for path in others) and holds_one_series(Path(folder)):
            yield Path(folder)


def scan_files(scan: str | os.PathLike) -> list[Path]:
    """The files of a scan: those of a DICOM folder, the header and the voxels of an `.mhd`, else one file."""
    path = absolute(scan)
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    if path.suffix.lower() == ".mhd":  # the voxels are in a second file
        return sorted(file for file in path.parent.iterdir() if file.stem == path.stem and file.is_file())
    return [path]


def fingerprint(scan: str | os.PathLike) -> list[tuple[str, int, int]]:
    """Name, size in bytes and modification time in ns of each file of a scan; equal while the scan is unchanged."""
    try:
        stats = [(file.name, file.stat()) for file in scan_files(scan)]
    except OSError as error:
        raise MissingFileError(f"'{absolute(scan)}' does not exist or cannot be read: {error.strerror}") from error
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def find_copy(scans: Sequence[str], others: Sequence[str]) -> tuple[str, str] | None:
    """Find a scan of the first list and one of the second with equal content.

    Fast: only scans of equal size are opened, and only those with an equal part in the middle are compared.
    """
    sizes = {_sizes(other) for other in others}
    by_sample: dict[tuple, list[str]] = {}
    for scan in scans:
        if _sizes(scan) in sizes:
            by_sample.setdefault(_sample(scan), []).append(scan)
    for other in others if by_sample else ():
        for scan in by_sample.get(_sample(other), ()):
            pairs = zip(scan_files(scan), scan_files(other), strict=True)
            if all(filecmp.cmp(*pair, shallow=False) for pair in pairs):
                return scan, other
    return None


def _sizes(scan: str) -> tuple[int, ...]:
    return tuple(file.stat().st_size for file in scan_files(scan))


def _sample(scan: str) -> tuple[tuple[int, ...], bytes]:
    sizes = _sizes(scan)
    with scan_files(scan)[0].open("rb") as file:
        file.seek(sizes[0] // 2)
        return sizes, file.read(_SAMPLE)


def _is_dicom(path: Path) -> bool:
    """Whether a file has the preamble of DICOM, or GDCM can read it and its suffix is usual for DICOM."""
    name = path.name.lower()
    if name.endswith(VOLUME_SUFFIXES) or name == "dicomdir" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM":
        return True
    if not head or path.suffix.lower() not in ("", ".dcm", ".ima"):
        return False
    import itk  # slow to import

    return bool(itk.GDCMImageIO.New().CanReadFile(str(path)))


def holds_one_series(folder: Path) -> bool:
    """Whether the DICOM files in a folder are images, not reports or structure sets.

    Raises:
        InputError: they are of more than one series, or two slices have one position; ITK would read two copies of a
            series as one interleaved volume.
    """
    import itk  # slow to import

    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)
    names.AddSeriesRestriction("0008|0021")
    names.SetDirectory(str(folder))
    series = [names.GetFileNames(uid) for uid in names.GetSeriesUIDs()]
    if len(series) > 1:
        sizes = " + ".join(str(len(files)) for files in series)
        raise InputError(
            f"DICOM folder '{folder}' holds {len(series)} series ({sizes} files), expected one; "
            "move each series into a folder of its own"
        )
    file_at: dict[str, str] = {}
    reader = itk.GDCMImageIO.New()
    for file in series[0] if series else ():
        reader.SetFileName(file)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise InputError(f"cannot read '{file}': {one_line(error)}") from error
        header = reader.GetMetaDataDictionary()
        position = header[_POSITION].strip() if header.HasKey(_POSITION) else ""
        if position and (other := file_at.setdefault(position, file)) != file:
            raise InputError(
                f"DICOM folder '{folder}' has two slices at one position, '{Path(other).name}' and "
                f"'{Path(file).name}'; keep one file for each slice"
            )
    return bool(series)
