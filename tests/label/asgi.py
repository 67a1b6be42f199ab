"""The guard in front of an application that records what it receives, and requests to it, without a server."""

from __future__ import annotations

import asyncio
import email
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

from tests.label.server import ROOT

LIMIT = 1 << 21  # bytes of an upload


def load_guard() -> ModuleType:
    """Import `samora_guard` without its neighbour, the stand-in for torchvision."""
    if "samora_guard" not in sys.modules:
        folder = ROOT / "label" / "modules" / "samora_guard"
        spec = importlib.util.spec_from_file_location(
            "samora_guard", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules["samora_guard"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["samora_guard"])
    return sys.modules["samora_guard"]


@dataclass
class Seen:
    """A request as the application behind the guard received it."""

    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def parts(self) -> dict[str, tuple[str | None, bytes]]:
        """File name and content of each field of a form."""
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        return {
            str(part.get_param("name", header="content-disposition")): (
                part.get_filename(),
                part.get_payload(decode=True),
            )
            for part in email.message_from_bytes(head + self.body).get_payload()
        }


@dataclass
class Behind:
    """An application that answers 200 to everything."""

    seen: list[Seen] = field(default_factory=list)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append(Seen(scope["path"], scope["query_string"].decode(), headers, body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


@dataclass
class Client:
    """Requests to a guard; what passes is in `behind.seen`."""

    studies: Path | None
    names: tuple[str, ...] = ()
    hook: Callable[[Any], None] | None = None
    limit: int = LIMIT
    admit: Callable[[Any], None] | None = None
    behind: Behind = field(default_factory=Behind)

    def send(
        self,
        method: str,
        address: str,
        body: bytes | Iterable[bytes] = b"",
        host: str | None = "127.0.0.1:8000",
        patience: float = 5.0,
        **headers: str,
    ) -> tuple[int, str]:
        """Send a request as uvicorn hands it on; return the status and the reason."""
        guard = load_guard()
        app = guard.Guard(
            self.behind, guard.Hosts(self.names), self.studies, self.limit, self.hook, self.admit, patience
        )
        raw, _, query = address.partition("?")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named |= {} if host is None else {"host": host}
        if isinstance(body, bytes) and body:
            named.setdefault("content-length", str(len(body)))
        scope = {
            "type": "http",
            "method": method,
            "path": unquote(raw),
            "raw_path": raw.encode(),
            "query_string": query.encode("utf-8"),
            "headers": [(name.encode(), value.encode("utf-8")) for name, value in named.items()],
        }
        pieces = iter([body] if isinstance(body, bytes) else body)
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            piece = next(pieces, None)
            if piece == "wait":
                await asyncio.sleep(60)
            return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

        async def answer(message: dict[str, Any]) -> None:
            sent.append(message)

        asyncio.run(app(scope, receive, answer))
        return sent[0]["status"], json.loads(sent[1]["body"] or b"{}").get("detail", "")


def form(*fields: tuple[str, str | None, bytes], boundary: str = "b0undary") -> tuple[bytes, str]:
    """Body and content type of a form of fields: name, file name or None, content."""
    body = b""
    for name, filename, content in fields:
        file = "" if filename is None else f'; filename="{filename}"'
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
        )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
