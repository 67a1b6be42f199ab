"""Which hosts and origins may address the server.

A web page of any origin can send requests to a server on this machine, and read the answers where CORS allows it, or
where its own name is made to resolve to 127.0.0.1 (DNS rebinding). Browsers say in `Host`, `Origin` and
`Sec-Fetch-Site` where a request goes to and comes from; clients that are not browsers send `Host` only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from samora_guard.refusal import Refusal, shown

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY = ("0.0.0.0", "::", "")  # bound to every address, a name of none

_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_PORTS = {"http": "80", "https": "443"}


class Hosts:
    """The names under which clients may address the server.

    Args:
        names: names or addresses without ports, beside those of the loopback interface.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        given = (name.strip().strip("[]").casefold() for name in names)
        self.names = frozenset((*LOOPBACK, *(name for name in given if name not in ANY)))

    def check(self, headers: Mapping[str, list[str]], opens_page: bool = False) -> None:
        """Check where a request goes to and comes from.

        Args:
            headers: all values of each header, by its name in lower case.
            opens_page: the request gets a page of the server; a link on any other page may lead to it.

        Raises:
            Refusal: 403.
        """
        hosts = headers.get("host", [])
        own = _authority(hosts[0]) if len(hosts) == 1 else None
        if own is None or own[0] not in self.names:
            raise Refusal(
                403, f"host {shown(hosts[0] if hosts else '')} is not this server's; add it with --allowed_hosts"
            )
        for origin in headers.get("origin", []):
            scheme, _, authority = origin.casefold().partition("://")
            other = _authority(authority) if scheme in _PORTS else None
            if other is None or (other[0], other[1] or _PORTS[scheme]) != (own[0], own[1] or _PORTS[scheme]):
                raise Refusal(403, f"requests from pages of other servers, as {shown(origin)}, are refused")
        sites = [site.strip().casefold() for site in headers.get("sec-fetch-site", [])]
        if any(site not in ("same-origin", "none") for site in sites):
            followed = headers.get("sec-fetch-mode") == ["navigate"] and headers.get("sec-fetch-dest") == ["document"]
            if not (opens_page and followed):
                raise Refusal(403, "requests from pages of other servers are refused")


def _authority(text: str) -> tuple[str, str | None] | None:
    """Name in lower case and port of `name:port`, or None if it is nothing of the kind."""
    match = _AUTHORITY.fullmatch(text.casefold())
    return None if match is None else (match["name"].strip("[]").rstrip("."), match["port"])
