"""The ASGI application in front of MONAI Label."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from samora_guard.bodies import PATIENCE, Body, Part, Receive, read_body
from samora_guard.forms import Form, read_form
from samora_guard.hosts import Hosts
from samora_guard.names import check_image_id, check_inside, check_series
from samora_guard.parameters import MAX_JSON, check_parameters, read_json
from samora_guard.refusal import Refusal, shown
from samora_guard.routes import IMAGE, Route, find_route, read_query

logger = logging.getLogger("samora_label")

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

CHUNK = 1 << 18
_REPLACED = (b"content-length", b"content-type", b"transfer-encoding", b"expect")
_SAFETY = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
)


@dataclass
class Request:
    """A checked request, as it goes on to MONAI Label.

    Args:
        method, path: as in HTTP; the path without percent-encoding.
        query: values in the address.
        settings: the JSON of the body, or None where the address takes none; a hook may change it.
    """

    method: str
    path: str
    query: dict[str, str]
    settings: dict[str, Any] | None = None
    content_type: bytes = b""
    pieces: list[bytes | Part] = field(default_factory=list)


class Guard:
    """Check each request, and pass it on to MONAI Label written anew.

    Args:
        app: MONAI Label.
        hosts: the names of the server.
        studies: folder of scans, or None for those of a DICOMweb server.
        max_upload: greatest number of bytes of a body, and of an unpacked volume.
        hook: called in a thread with each checked request; it may change the settings or raise `Refusal`.
        admit: called in a thread with the headers of a request, before its body is read; it may raise `Refusal`.
        patience: seconds that a body may stop.
    """

    def __init__(
        self,
        app: Application,
        hosts: Hosts,
        studies: Path | None,
        max_upload: int,
        hook: Callable[[Request], None] | None = None,
        admit: Callable[[dict[str, list[str]]], None] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.app, self.hosts, self.studies = app, hosts, studies
        self.max_upload, self.hook, self.admit, self.patience = max_upload, hook, admit, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # MONAI Label has no websockets
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = None
        try:
            try:
                route, request, headers = self._address(scope)
                if self.admit is not None and (route.fields or route.body not in ("", "login")):
                    await asyncio.to_thread(self.admit, headers)
                limit = self.max_upload if route.fields or route.body == "dicom" else MAX_JSON if route.body else 0
                body = await read_body(receive, headers, limit, self.patience)
                await asyncio.to_thread(self._content, route, request, headers, body)
            except Refusal as refusal:
                await _answer(scope, send, refusal.status, refusal.reason)
                return
            except Exception:  # nothing unchecked goes on
                logger.exception("the guard failed")
                await _answer(scope, send, 500, "the request could not be checked; see the server's log")
                return
            if request.path == "/":
                await _lead_to(send, "/info/" if self.studies is not None else "/ohif/")
            else:
                await self.app(_rewritten(scope, request), _Replay(request, receive), _with_safety(send))
        finally:
            if body is not None:
                body.close()

    def _address(self, scope: Scope) -> tuple[Route, Request, dict[str, list[str]]]:
        """Check headers, path and query."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        method, path = scope["method"], scope["path"]
        try:
            route, path = find_route(method, path)
        except Refusal:
            self.hosts.check(headers)  # a foreign page learns nothing of the addresses
            raise
        self.hosts.check(headers, opens_page=route.page and method == "GET")
        if path.startswith("/proxy/") and self.studies is not None:
            raise Refusal(404, "the scans are in a folder, not on a DICOMweb server; OHIF needs STUDIES=http://...")
        query = read_query(scope["query_string"], route)
        if path == "/logs/":
            query["text"] = "true"  # as a page, it executes scripts of other sites
        check_id = check_series if self.studies is None else check_image_id
        for key in (key for key in query if route.query.get(key) is IMAGE):
            query[key] = check_id(query[key])
        return route, Request(method, path, query), headers

    def _content(self, route: Route, request: Request, headers: dict[str, list[str]], body: Body) -> None:
        """Check and rewrite the body, then what the request as a whole refers to."""
        kinds = headers.get("content-type", [""])
        if len(kinds) > 1:
            raise Refusal(400, "Content-Type is stated once")
        kind = kinds[0].split(";")[0].strip().casefold()
        form = None
        if route.fields and len(body):
            form = read_form(body, kinds[0], route.fields, self.max_upload)
            self._take(form, request)
        elif route.body in ("json", "nested", "words"):
            if len(body) and kind != "application/json":
                raise Refusal(415, f"the body is application/json; got {shown(kinds[0])}")
            value = read_json(body[:], "the body")
            request.settings = check_parameters(value, words=route.body == "words", nested=route.body != "json")
        elif route.body:
            expected = {"login": "application/x-www-form-urlencoded", "dicom": "multipart/related"}[route.body]
            if kind != expected:
                raise Refusal(415, f"the body is {expected}; got {shown(kinds[0])}")
            request.content_type, request.pieces = kinds[0].encode("latin-1"), [Part(body, 0, len(body))]
        given = request.query.keys() | (set() if form is None else {name for name, _, _ in form.files})
        if missing := [name for name in route.needs if name not in given]:
            raise Refusal(400, f"the request states no {missing[0]!r}")
        if request.path.startswith("/infer/") and not given & {"image", "session_id", "file"}:
            raise Refusal(400, "the request states no 'image', 'session_id' or 'file'")
        if self.studies is not None:
            ids = [value for key, value in request.query.items() if route.query.get(key) is IMAGE]
            settings = request.settings if form is None else json.loads(form.texts.get("params", "{}"))
            for tag in (request.query.get("tag"), (settings or {}).get("label_tag")):
                check_inside(self.studies, ids[0] if ids else None, tag)
        if self.hook is not None:
            self.hook(request)
        if request.settings is not None:
            request.content_type, request.pieces = b"application/json", [json.dumps(request.settings).encode()]

    def _take(self, form: Form, request: Request) -> None:
        uploads = request.method == "PUT" and request.path in ("/datastore/", "/datastore/image")
        if uploads and "image" not in request.query:  # else MONAI Label would take the id from the file's name
            request.query["image"] = (check_series if self.studies is None else check_image_id)(form.name)
        if form.texts or form.files:
            request.content_type, request.pieces = form.pieces()


class _Replay:
    """Gives the application the rewritten body, then what the client sends after it, that is its departure."""

    def __init__(self, request: Request, receive: Receive) -> None:
        self._pieces, self._receive = _chunks(request.pieces), receive
        self._done = False

    async def __call__(self) -> dict[str, Any]:
        if self._done:
            return await self._receive()
        piece = next(self._pieces, None)
        self._done = piece is None
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}


def _chunks(pieces: list[bytes | Part]) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), CHUNK):
            yield piece[start : start + CHUNK]


def _rewritten(scope: Scope, request: Request) -> Scope:
    headers = [(name.lower(), value) for name, value in scope["headers"] if name.lower() not in _REPLACED]
    if request.pieces:
        headers.append((b"content-type", request.content_type))
        headers.append((b"content-length", str(sum(map(len, request.pieces))).encode()))
    return scope | {
        "path": request.path,
        "raw_path": quote(request.path).encode(),
        "query_string": urlencode(request.query).encode(),
        "headers": headers,
    }


def _with_safety(send: Send) -> Send:
    async def send_safely(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message.get("headers", [])}
            added = [(name, value) for name, value in _SAFETY if name not in present]
            message = message | {"headers": [*message.get("headers", []), *added]}
        await send(message)

    return send_safely


async def _lead_to(send: Send, address: str) -> None:
    headers = [(b"location", address.encode("ascii")), (b"content-length", b"0"), *_SAFETY]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _answer(scope: Scope, send: Send, status: int, reason: str) -> None:
    address = ascii(scope["path"])[1:-1][:200]
    logger.warning("error: %s %s: %s", scope["method"], address, reason)
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_SAFETY]
    headers.append((b"connection", b"close"))  # the body may be unread
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
