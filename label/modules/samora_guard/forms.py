"""Forms, `multipart/form-data`: parsed strictly, checked, and written anew.

The file names of the client do not go on: of each, only a known suffix is kept. MONAI Label receives `upload.nii.gz`.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field

from samora_guard.bodies import Body, Part
from samora_guard.names import base_name, file_suffix
from samora_guard.parameters import MAX_JSON, check_info, check_parameters, read_json
from samora_guard.refusal import Refusal, shown
from samora_guard.volumes import check_volume

_TYPE = re.compile(r'multipart/form-data; *boundary=(?:"([^"]{1,100})"|([^\s";,]{1,100}))', re.ASCII | re.IGNORECASE)
_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=?$ ~*!#%&^`|{}-]{1,100}", re.ASCII)
_DISPOSITION = re.compile(rb'form-data((?:; *(?:name|filename)="[^"\r\n\0]*")+)', re.IGNORECASE)
_ATTRIBUTE = re.compile(rb'; *(name|filename)="([^"\r\n\0]*)"', re.IGNORECASE)
_HEADERS = (b"content-disposition", b"content-type", b"content-length", b"content-transfer-encoding")
_MAX_PARTS, _MAX_HEAD = 16, 4096


@dataclass
class Form:
    """A checked form.

    Args:
        texts: checked texts of the fields, canonical.
        files: name of the field, suffix and content of each file.
        name: the name that the client gave to the last file, without folder and suffix; not checked.
    """

    texts: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, str, Part]] = field(default_factory=list)
    name: str = ""

    def pieces(self) -> tuple[bytes, list[bytes | Part]]:
        """Return the content type and the body of the form."""
        boundary = secrets.token_hex(24).encode("ascii")
        pieces: list[bytes | Part] = []
        for name, text in self.texts.items():
            pieces.append(b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n' % (boundary, name.encode()))
            pieces.append(text.encode("utf-8") + b"\r\n")
        for name, suffix, part in self.files:
            head = f'Content-Disposition: form-data; name="{name}"; filename="upload{suffix}"\r\n'
            pieces.append(b"--%b\r\n%bContent-Type: application/octet-stream\r\n\r\n" % (boundary, head.encode()))
            pieces.extend((part, b"\r\n"))
        return b"multipart/form-data; boundary=" + boundary, [*pieces, b"--%b--\r\n" % boundary]


def read_form(body: Body, content_type: str, fields: frozenset[str], limit: int) -> Form:
    """Parse and check a form.

    Args:
        body: the body of the request.
        content_type: its `Content-Type`.
        fields: the names of the fields that the address takes.
        limit: greatest number of bytes of an unpacked volume.

    Raises:
        Refusal: 4xx.
    """
    form, seen = Form(), set()
    for name, filename, part in _parts(body, content_type):
        if name not in fields or name in seen:
            raise Refusal(400, f"the form's fields are {', '.join(sorted(fields))}, each once; got {shown(name)}")
        seen.add(name)
        if (filename is None) != (name in ("params", "info", "client_id")):
            raise Refusal(400, f"field {shown(name)} is {'a file' if filename is None else 'no file'}")
        if filename is None:
            form.texts[name] = _checked_text(name, part)
        else:
            suffix = file_suffix(filename)
            check_volume(part, suffix, limit)
            form.name = base_name(filename).removesuffix(suffix)
            form.files.append((name, suffix, part))
    return form


def _checked_text(name: str, part: Part) -> str:
    if len(part) > MAX_JSON:
        raise Refusal(413, f"field {shown(name)} has more than {MAX_JSON} bytes")
    text = part[:]
    if name == "client_id":
        return str(check_parameters({name: text.decode("utf-8", "replace")})[name])
    value = read_json(text, f"field {name!r}")
    return json.dumps(check_parameters(value) if name == "params" else check_info(value))


def _parts(body: Body, content_type: str) -> list[tuple[str, str | None, Part]]:
    """Name, file name or None, and content of each part."""
    match = _TYPE.fullmatch(content_type.strip())
    boundary = (match[1] or match[2]) if match else ""
    if not boundary or _BOUNDARY.fullmatch(boundary) is None:
        raise Refusal(415, f"the body is a form, multipart/form-data with a boundary; got {shown(content_type)}")
    mark = b"\r\n--" + boundary.encode("ascii")
    if body[: len(mark) - 2] != mark[2:]:
        raise Refusal(400, "the form does not start with its boundary")
    parts: list[tuple[str, str | None, Part]] = []
    position = len(mark) - 2
    while (following := body[position : position + 2]) != b"--":
        end = body.find(b"\r\n\r\n", position)
        stop = body.find(mark, position)
        if following != b"\r\n" or not 0 <= end < stop or end - position > _MAX_HEAD or len(parts) == _MAX_PARTS:
            raise Refusal(400, f"the form is cut short or damaged, or has more than {_MAX_PARTS} parts")
        name, filename = _head(body[position + 2 : end])
        parts.append((name, filename, Part(body, end + 4, max(stop, end + 4))))
        if stop < end + 4:
            raise Refusal(400, "a part of the form has no content")
        position = stop + len(mark)
    if len(body) > position + 10 or body[position + 2 :].strip(b"\r\n"):
        raise Refusal(400, "bytes follow the end of the form")
    return parts


def _head(head: bytes) -> tuple[str, str | None]:
    """Name and file name in the headers of a part."""
    found: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        key = name.lower()
        if not colon or key not in _HEADERS or key in found or b"\n" in line or b"\r" in line or b"\0" in line:
            raise Refusal(400, f"a part of the form has no header {shown(line.decode('latin-1'))}")
        found[key] = value.strip()
    encoding = found.get(b"content-transfer-encoding", b"binary").lower()
    disposition = found.get(b"content-disposition", b"")
    match = _DISPOSITION.fullmatch(disposition)
    pairs = [(key.lower(), value) for key, value in _ATTRIBUTE.findall(match[1])] if match else []
    values = dict(pairs)
    if len(values) != len(pairs) or b"name" not in values or encoding not in (b"binary", b"8bit", b"7bit"):
        raise Refusal(400, f"a part of the form is not named as expected: {shown(disposition.decode('latin-1'))}")
    try:
        name = values[b"name"].decode("ascii")
        filename = values[b"filename"].decode("utf-8") if b"filename" in values else None
    except UnicodeDecodeError as error:
        raise Refusal(400, "a name in the form is not text") from error
    return name, filename
