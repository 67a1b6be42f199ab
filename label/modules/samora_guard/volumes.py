"""Checks of uploaded scans and labels: whole, of a bounded size, and without a reference to another file.

A NIfTI header states how many bytes follow; a file cut short, and one that unpacks to much more, differ from it. An
NRRD header can name another file as the place of its data, which a reader would open: such files are refused.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Iterator
from typing import Protocol

from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from samora_guard.refusal import Refusal, shown

CHUNK = 1 << 20
_MAX_MEMBERS = 50_000
_SLACK = 1 << 20  # bytes that may follow the voxels, as padding
_NRRD_TYPES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
    2: ("short", "short int", "signed short", "int16", "int16_t", "ushort", "unsigned short", "uint16", "uint16_t"),
    4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"),
    8: ("long long", "longlong", "int64", "int64_t", "unsigned long long", "ulonglong", "uint64", "uint64_t", "double"),
}
_NRRD_BYTES = {name: size for size, names in _NRRD_TYPES.items() for name in names}


class Bytes(Protocol):
    """A part of a request's body."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice) -> bytes: ...


def check_volume(data: Bytes, suffix: str, limit: int) -> None:
    """Check the content of an uploaded file.

    Args:
        data: the file.
        suffix: one of `names.SUFFIXES`.
        limit: greatest number of bytes of the unpacked volume.

    Raises:
        Refusal: 400 or 413.
    """
    (_check_nrrd if suffix.endswith(".nrrd") else _check_nifti)(data, suffix, limit)


def _check_nifti(data: Bytes, suffix: str, limit: int) -> None:
    parts = _unpacked(data) if suffix.endswith(".gz") else _pieces(data)
    head = b""
    try:
        while len(head) < 540 and (part := next(parts, b"")):
            head += part
        kind = Nifti2Header if head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else Nifti1Header
        header = kind.from_fileobj(io.BytesIO(head), check=True)  # type: ignore[no-untyped-call]
        shape, item = [int(size) for size in header.get_data_shape()], header.get_data_dtype().itemsize
        start = int(header["vox_offset"])
    except Refusal:
        raise
    except Exception as error:  # nibabel raises errors of many types
        raise Refusal(400, f"the uploaded {suffix} file is not a NIfTI volume, or is damaged") from error
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):  # voxels in another file
        raise Refusal(400, f"the uploaded {suffix} file is not one whole NIfTI volume")
    found = len(head) + sum(map(len, _bounded(parts, limit)))
    _check_count(shape, start + math.prod(shape) * item, found, suffix, limit)


def _check_nrrd(data: Bytes, suffix: str, limit: int) -> None:
    head = bytes(data[: 1 << 20])
    end = head.find(b"\n\n")
    if not head.startswith(b"NRRD000") or end < 0 or b"\r" in head[:end]:  # readers differ in what ends a line
        raise Refusal(400, f"the uploaded {suffix} file is not an NRRD volume, or is damaged")
    fields = {}
    for line in head[:end].decode("latin-1").split("\n")[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            key = re.sub(r"\s", "", name).casefold()
            if key in fields:
                raise Refusal(400, f"the uploaded {suffix} file states {shown(name)} twice")
            fields[key] = value.strip()
    if {"datafile", "lineskip", "byteskip"} & fields.keys():
        raise Refusal(400, f"the uploaded {suffix} file refers to another file; upload one with its data inside")
    encoding = fields.get("encoding", "").casefold()
    item = _NRRD_BYTES.get(fields.get("type", "").casefold())
    sizes = fields.get("sizes", "").split()
    known = encoding in ("raw", "gzip", "gz") and item and sizes and len(sizes) <= 7
    if not known or not all(re.fullmatch("[0-9]{1,9}", size, re.ASCII) for size in sizes):
        raise Refusal(400, f"the uploaded {suffix} file has an unknown type, encoding or size, or is damaged")
    shape, start = [int(size) for size in sizes], end + 2
    parts = _pieces(data, start) if encoding == "raw" else _unpacked(data, start)
    _check_count(shape, math.prod(shape) * int(item or 0), sum(map(len, _bounded(parts, limit))), suffix, limit)


def _check_count(shape: list[int], stated: int, found: int, suffix: str, limit: int) -> None:
    if not 1 <= len(shape) <= 7 or min(shape) < 1:
        raise Refusal(400, f"the uploaded {suffix} file states an impossible shape, {shown(shape)}")
    if max(stated, found) > limit:
        raise Refusal(413, f"the uploaded volume unpacks to more than {limit} bytes; raise --max_upload_gb")
    if found < stated:
        raise Refusal(400, f"the uploaded {suffix} file is cut short: its header states {stated} bytes, it has {found}")
    if found > stated + _SLACK:
        raise Refusal(400, f"the uploaded {suffix} file holds more than the volume that its header states")


def _pieces(data: Bytes, start: int = 0, size: int = CHUNK) -> Iterator[bytes]:
    for position in range(start, len(data), size):
        yield data[position : position + size]


def _unpacked(data: Bytes, start: int = 0) -> Iterator[bytes]:
    """Unpack gzip in pieces of at most `CHUNK` bytes; of several members, as `bgzip` writes them, each."""
    reader, rest, members = zlib.decompressobj(wbits=31), b"", 1
    pieces = _pieces(data, start, 1 << 16)  # small, as zlib copies what follows each member
    try:
        while rest or (rest := next(pieces, b"")):
            yield reader.decompress(rest, CHUNK)
            rest = reader.unconsumed_tail
            if reader.eof:
                rest = reader.unused_data or next(pieces, b"")
                if not rest.strip(b"\0"):
                    return
                reader, members = zlib.decompressobj(wbits=31), members + 1
                if members > _MAX_MEMBERS:
                    raise Refusal(400, f"the uploaded file has more than {_MAX_MEMBERS} parts of gzip data")
        if not reader.eof:
            yield reader.flush()
    except zlib.error as error:
        raise Refusal(400, "the uploaded file is not whole gzip data; it is damaged") from error
    if not reader.eof:
        raise Refusal(400, "the uploaded file is cut short: its gzip data does not end")


def _bounded(parts: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """`parts`, up to the first that exceeds `limit` bytes in total."""
    total = 0
    for part in parts:
        yield part
        total += len(part)
        if total > limit:
            return
