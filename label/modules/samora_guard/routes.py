"""The addresses that the server answers, and what each of them takes; every other one is refused.

Not among them: uploads of model files (`PUT /model/...`: a model comes from a training or from `make label`), deletion
of models, inference on whole-slide images, `/reload`, and the API's own pages, which execute scripts of other sites.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from samora_guard.names import check_session, check_tag, check_word
from samora_guard.refusal import Refusal, shown

Check = Callable[[str], str]


def _choice(*choices: str) -> Check:
    def check(value: str) -> str:
        if value not in choices:
            raise Refusal(400, f"expected one of {', '.join(choices)}; got {shown(value)}")
        return value

    return check


def _pattern(pattern: str, what: str) -> Check:
    expression = re.compile(pattern, re.ASCII)

    def check(value: str) -> str:
        if expression.fullmatch(value) is None:
            raise Refusal(400, f"expected {what}; got {shown(value)}")
        return value

    return check


def _line(value: str) -> str:
    if len(value) > 2000 or any(ord(sign) < 32 or ord(sign) == 127 for sign in value):
        raise Refusal(400, f"a value in the address is one line of at most 2000 characters; got {shown(value)}")
    return value


_BOOLEAN = _pattern("(?i:true|false|1|0|yes|no|on|off)", "true or false")
_COUNT = _pattern("[0-9]{1,7}", "a number")
IMAGE: Check = str  # checked by the guard, which knows whether studies are files or DICOM series


@dataclass(frozen=True)
class Route:
    """One address.

    Args:
        methods: HTTP methods.
        path: regular expression of the decoded path; group `word` is a name, `session` the id of a session.
        query: check of each value in the address.
        body: what the body is: `json`, `nested` or `words` (settings), `login`, `dicom`, or empty.
        fields: fields of a form.
        needs: values in the address, and files of the form, without which there is nothing to do.
        page: a page or its files, which a link may lead to.
    """

    methods: tuple[str, ...]
    path: str
    query: dict[str, Check] = field(default_factory=dict)
    body: str = ""
    fields: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    page: bool = False

    def match(self, path: str) -> re.Match[str] | None:
        return re.fullmatch(self.path, path)


_FILE = r"[^/\\\x00-\x1f\x7f.][^/\\\x00-\x1f\x7f]*"
_FILES = rf"(?:{_FILE}(?:/{_FILE})*/?)?"
_DICOM = (
    r"/proxy/dicom/(?:(?:wado|qido|stow)/)?(?:studies|series|instances)(?:/(?:studies|series|instances|metadata|rendered"
    r"|thumbnail|frames|bulkdata|bulk|pixeldata|[0-9A-Fa-f][0-9A-Fa-f.,]{0,99}))*/?"
)
_ANY: dict[str, Check] = {"*": _line}
_STATUS = {"all": _BOOLEAN, "check_if_running": _BOOLEAN}
_LABEL = {"label": IMAGE, "tag": check_tag}
_GET, _HEAD, _PUT, _POST, _DELETE = ("GET",), ("HEAD",), ("PUT",), ("POST",), ("DELETE",)

ROUTES = (
    Route(_GET, "/", page=True),
    Route(_GET, r"/(openapi\.json|favicon\.ico)", page=True),
    Route(("GET", "HEAD"), f"/static/{_FILES}", page=True, query=_ANY),
    Route(_GET, f"/ohif/{_FILES}", page=True, query=_ANY),
    Route(_GET, "/info/"),
    Route(_GET, "/logs/", {"lines": _COUNT, "html": _BOOLEAN, "text": _BOOLEAN, "refresh": _COUNT}),
    Route(_GET, "/auth/(token/valid)?"),
    Route(_POST, "/auth/token", body="login"),
    Route(_GET, "/model/(info/)?(?P<word>[^/]+)"),
    Route(
        _POST,
        "/infer/(?P<word>[^/]+)",
        {"image": IMAGE, "session_id": check_session, "output": _choice("image", "json", "all", "dicom_seg")},
        fields=frozenset(("params", "file", "label")),
    ),
    Route(_GET, "/batch/infer", _STATUS),
    Route(_DELETE, "/batch/infer"),
    Route(
        _POST,
        "/batch/infer/(?P<word>[^/]+)",
        {"images": _choice("all", "labeled", "unlabeled"), "run_sync": _BOOLEAN},
        body="json",
    ),
    Route(_GET, "/train/", _STATUS),
    Route(_DELETE, "/train/"),
    Route(_POST, "/train/(?P<word>[^/]+)?", {"run_sync": _BOOLEAN, "enqueue": _BOOLEAN}, body="nested"),
    Route(_GET, "/scoring/", _STATUS),
    Route(_DELETE, "/scoring/"),
    Route(_POST, "/scoring/(?P<word>[^/]+)?", {"run_sync": _BOOLEAN}, body="words"),
    Route(_POST, "/activelearning/(?P<word>[^/]+)", body="words"),
    Route(_GET, "/session/(?P<session>[^/]+)", {"update_ts": _BOOLEAN, "image": _BOOLEAN}),
    Route(_PUT, "/session/", {"expiry": _COUNT}, fields=frozenset(("files", "client_id")), needs=("files",)),
    Route(_DELETE, "/session/(?P<session>[^/]+)"),
    Route(_GET, "/datastore/", {"output": _choice("train", "stats", "all")}),
    Route(_PUT, "/datastore/(image)?", {"image": IMAGE}, fields=frozenset(("params", "file")), needs=("file",)),
    Route(_DELETE, "/datastore/(image)?", {"id": IMAGE}, needs=("id",)),
    Route(
        ("GET", "HEAD"),
        "/datastore/image",
        {"image": IMAGE, "check_sum": _pattern("([A-Za-z0-9]{1,16}:)?[0-9A-Fa-f]{1,128}", "a checksum")},
        needs=("image",),
    ),
    Route(_GET, "/datastore/image/info", {"image": IMAGE}, needs=("image",)),
    Route(_PUT, "/datastore/image/info", {"image": IMAGE}, fields=frozenset(("info",)), needs=("image",)),
    Route(
        _PUT,
        "/datastore/label",
        {"image": IMAGE, "tag": check_tag},
        fields=frozenset(("params", "label")),
        needs=("image", "label"),
    ),
    Route(_DELETE, "/datastore/label", {"id": IMAGE, "tag": check_tag}, needs=("id", "tag")),
    Route(_GET, "/datastore/label", _LABEL, needs=("label", "tag")),
    Route(_HEAD, "/datastore/label", {"image": IMAGE, "tag": check_tag}, needs=("image", "tag")),
    Route(_GET, "/datastore/label/info", _LABEL, needs=("label", "tag")),
    Route(_PUT, "/datastore/label/info", _LABEL, fields=frozenset(("info",)), needs=("label", "tag")),
    Route(_PUT, "/datastore/updatelabelinfo", _LABEL, fields=frozenset(("params",)), needs=("label", "tag")),
    Route(_GET, "/datastore/dataset", {"limit_cases": _COUNT}),
    Route(_GET, _DICOM, _ANY),
    Route(_POST, r"/proxy/dicom/(stow/)?studies(/[0-9]+(\.[0-9]+){1,63})?/?", body="dicom"),
)


def find_route(method: str, path: str) -> tuple[Route, str]:
    """Return the route of a request, and its path as MONAI Label expects it, with or without `/` at its end.

    Raises:
        Refusal: 404 or 405.
    """
    known = False
    for route in ROUTES:
        for form in (path, f"{path}/", path.rstrip("/")):
            if form and (match := route.match(form)) is not None:
                known = True
                if method in route.methods:
                    if (word := match.groupdict().get("word")) is not None:
                        check_word(word, "a name in the address")
                    if (session := match.groupdict().get("session")) is not None:
                        check_session(session)
                    return route, form
                break
    if known:
        raise Refusal(405, f"{shown(method)} is not a method of {shown(path)}")
    raise Refusal(404, f"the server has no address {shown(path)}; GET /openapi.json lists those of MONAI Label")


def read_query(query: bytes, route: Route) -> dict[str, str]:
    """Read the values in the address and check them; each is decoded once, and stated once.

    Raises:
        Refusal: 400 or 414.
    """
    if len(query) > 8192:
        raise Refusal(414, "the address has more than 8192 bytes after its '?'")
    values: dict[str, str] = {}
    for pair in filter(None, query.split(b"&")):
        encoded, _, text = pair.partition(b"=")
        try:
            key, value = (unquote_to_bytes(part.replace(b"+", b" ")).decode("utf-8") for part in (encoded, text))
        except UnicodeDecodeError as error:
            raise Refusal(400, "a value in the address is not UTF-8") from error
        check = route.query.get(key, route.query.get("*"))
        if check is None or (key in values and "*" not in route.query):
            allowed = ", ".join(route.query) or "none"
            raise Refusal(400, f"{shown(key)} is unknown or stated twice; this address takes, each once: {allowed}")
        if value or check is not IMAGE:
            values[key] = check(value)
    return values
