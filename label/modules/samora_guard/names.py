"""Checks of the names in a request that become parts of paths: ids of images, tags, models, suffixes of files."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from samora_guard.refusal import Refusal, shown

SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd")  # of scans and labels; longer ones first

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_SESSION = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_UID = re.compile(r"[0-9]+(\.[0-9]+)+", re.ASCII)
_KNOWN_TAGS = ("final", "original")


def check_image_id(value: str) -> str:
    """Check an id of an image or label: one name of a file, without its suffix.

    Spaces and letters of any language are allowed. Separators, control characters, a leading dot, and percent-encoded
    or compatibility forms of any of them are not.

    Raises:
        Refusal: 400.
    """
    compatible = unicodedata.normalize("NFKC", value)
    wrong = (
        not value.strip()
        or value != value.strip()
        or len(value.encode("utf-8", "surrogatepass")) > 200
        or unquote(value) != value
        or any(sign in text for text in (value, compatible) for sign in "/\\")
        or any(text.startswith((".", "-", "~")) for text in (value, compatible))
        or any(unicodedata.category(sign)[0] == "C" or unicodedata.category(sign) in ("Zl", "Zp") for sign in value)
        or re.match(r"[A-Za-z]:", compatible) is not None  # a drive of Windows
    )
    if wrong:
        reason = "an image's id is the name of its file without folder and suffix, at most 200 bytes"
        raise Refusal(400, f"{reason}; got {shown(value)}")
    return value


def check_series(value: str) -> str:
    """Check the id of a DICOM series: a UID, digits and dots.

    Raises:
        Refusal: 400.
    """
    if len(value) > 64 or _UID.fullmatch(value) is None:
        raise Refusal(400, f"an image's id on a DICOMweb server is its SeriesInstanceUID; got {shown(value)}")
    return value


def check_word(value: str, what: str) -> str:
    """Check a name of a model, strategy, scoring method or tag: at most 64 of the characters A-Z, 0-9, `_`, `.`, `-`.

    Raises:
        Refusal: 400.
    """
    if len(value) > 64 or _WORD.fullmatch(value) is None or ".." in value:
        raise Refusal(400, f"{what} is a word of letters, digits, '_', '.' and '-', at most 64; got {shown(value)}")
    return value


def check_tag(value: str) -> str:
    """Check the tag of a label; it is the name of a folder.

    Raises:
        Refusal: 400.
    """
    check_word(value, "a label's tag")
    if value.casefold() in _KNOWN_TAGS and value not in _KNOWN_TAGS:  # one folder on some file systems
        raise Refusal(400, f"a label's tag {shown(value)} differs from {value.casefold()!r} only in case; use that")
    return value


def check_session(value: str) -> str:
    """Check the id of a session, as the server gives them out.

    Raises:
        Refusal: 400.
    """
    if _SESSION.fullmatch(value) is None:
        raise Refusal(400, f"a session's id is the one that PUT /session/ returned; got {shown(value)}")
    return value


def file_suffix(name: str) -> str:
    """Return the suffix of an uploaded file's name, one of `SUFFIXES`.

    Raises:
        Refusal: 415, it has another one.
    """
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise Refusal(415, f"a scan or label is a file {', '.join(SUFFIXES)}; got {shown(base_name(name))}")


def base_name(name: str) -> str:
    """Return the last part of a file's name, which clients send with their own folders, of any system."""
    return PurePosixPath(name.replace("\\", "/")).name


def check_inside(studies: Path, image: str | None, tag: str | None) -> None:
    """Check that the files that belong to an id and a tag lie in the folder of studies, whatever links are there.

    Args:
        studies: the folder, itself possibly a link.
        image: a checked id, or None.
        tag: a checked tag, or None.

    Raises:
        Refusal: 403, a link leads outside.
    """
    root = studies.resolve()
    labels = [studies / "labels", *([studies / "labels" / tag] if tag else [])]
    folders = [studies, *labels, studies / "labels" / "final", studies / "labels" / "original"]
    files = [folder / f"{image}{suffix}" for folder in folders for suffix in ("", *SUFFIXES)] if image else []
    for path in (*folders, *files):
        if not path.resolve().is_relative_to(root):
            raise Refusal(403, f"{shown(path.name)} is a link out of the folder of studies; put a copy there instead")
