"""Reading the body of a request: in memory while it is small, then in a file without a name; never past a limit."""

from __future__ import annotations

import asyncio
import mmap
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

from samora_guard.refusal import Refusal, shown

MEMORY = 1 << 20  # bytes
PATIENCE = 60.0  # seconds without a byte

Receive = Callable[[], Awaitable[dict[str, Any]]]


class Body:
    """The bytes of a body; close it to free them."""

    def __init__(self) -> None:
        self._memory = bytearray()
        self._file: Any = None
        self._map: mmap.mmap | None = None
        self.size = 0

    def append(self, piece: bytes) -> None:
        if self._file is None and self.size + len(piece) > MEMORY:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
            self._file.write(self._memory)
            self._memory.clear()
        if self._file is None:
            self._memory += piece
        else:
            self._file.write(piece)
        self.size += len(piece)

    def finish(self) -> None:
        """No more bytes follow."""
        if self._file is not None:
            self._file.flush()
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def find(self, sought: bytes, start: int) -> int:
        return (self._memory if self._map is None else self._map).find(sought, start)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        return bytes((self._memory if self._map is None else self._map)[part])

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
        if self._file is not None:
            self._file.close()


class Part:
    """Bytes `start` to `stop` of a body, not copied."""

    def __init__(self, body: Body, start: int, stop: int) -> None:
        self._body, self._start, self._stop = body, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(len(self))
        return self._body[self._start + start : self._start + max(start, stop)]


async def read_body(receive: Receive, headers: dict[str, list[str]], limit: int, patience: float = PATIENCE) -> Body:
    """Read a body of at most `limit` bytes.

    Raises:
        Refusal: 413, more are announced or come; 408, none come for `patience` seconds; 400, the client went away or
            announced no number.
    """
    announced = headers.get("content-length", ["0"])
    if "content-length" in headers and "transfer-encoding" in headers:  # two readers could split it differently
        raise Refusal(400, "a request states Content-Length or Transfer-Encoding, not both")
    if len(announced) > 1 or not (announced[0].isascii() and announced[0].isdigit() and len(announced[0]) < 20):
        raise Refusal(400, f"Content-Length is a number; got {shown(announced[0])}")
    if int(announced[0]) > limit:
        raise Refusal(413, f"a body of {announced[0]} bytes is announced; at most {limit} are accepted")
    body = Body()
    try:
        while True:
            try:
                message = await asyncio.wait_for(receive(), patience)
            except asyncio.TimeoutError as error:
                raise Refusal(408, f"the body of the request stopped for {patience:.0f} seconds") from error
            if message["type"] != "http.request":
                raise Refusal(400, "the client went away before the end of its request")
            piece = message.get("body", b"")
            if body.size + len(piece) > limit:
                raise Refusal(413, f"the body has more than {limit} bytes, the most that is accepted")
            if body.size + len(piece) > MEMORY:
                await asyncio.to_thread(body.append, piece)
            else:
                body.append(piece)
            if not message.get("more_body", False):
                body.finish()
                return body
    except BaseException:
        body.close()
        raise
