"""The guard in front of MONAI Label: hosts, origins, addresses, ids and tags. Whatever passes would be recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.label.asgi import Client, load_guard

MODEL = "samora_segmentation"
JSON = {"content_type": "application/json"}
WITH_IMAGE = {
    "infer": ("POST", f"/infer/{MODEL}?image="),
    "upload": ("PUT", "/datastore/image?image="),
    "upload, old address": ("PUT", "/datastore/?image="),
    "download": ("GET", "/datastore/image?image="),
    "exists": ("HEAD", "/datastore/image?image="),
    "info": ("GET", "/datastore/image/info?image="),
    "notes": ("PUT", "/datastore/image/info?image="),
    "delete": ("DELETE", "/datastore/image?id="),
    "delete, old address": ("DELETE", "/datastore/?id="),
    "submit": ("PUT", "/datastore/label?tag=final&image="),
    "delete a label": ("DELETE", "/datastore/label?tag=final&id="),
    "download a label": ("GET", "/datastore/label?tag=final&label="),
    "label exists": ("HEAD", "/datastore/label?tag=final&image="),
    "info of a label": ("GET", "/datastore/label/info?tag=final&label="),
    "notes on a label": ("PUT", "/datastore/label/info?tag=final&label="),
    "notes, old address": ("PUT", "/datastore/updatelabelinfo?tag=final&label="),
}
WITH_NAME = {
    "infer": ("POST", "/infer/{}?image=a"),
    "batch": ("POST", "/batch/infer/{}"),
    "train": ("POST", "/train/{}"),
    "scoring": ("POST", "/scoring/{}"),
    "strategy": ("POST", "/activelearning/{}"),
    "model": ("GET", "/model/{}"),
    "session": ("GET", "/session/{}"),
    "delete a session": ("DELETE", "/session/{}"),
    "session of infer": ("POST", f"/infer/{MODEL}?session_id={{}}"),
    "tag of a label": ("GET", "/datastore/label?label=a&tag={}"),
    "tag of a submitted label": ("PUT", "/datastore/label?image=a&tag={}"),
}
TRICKS = {
    "dots": "..",
    "parent": "../app/main",
    "encoded": "%2e%2e%2fapp%2fmain",
    "doubly encoded": "%252e%252e%252fapp%252fmain",
    "mixed": "..%2fx",
    "overlong UTF-8": "%c0%ae%c0%ae%c0%afx",
    "backslash": "..%5capp%5cmain",
    "absolute": "/etc/passwd",
    "absolute, encoded": "%2fetc%2fpasswd",
    "drive": "C:%5cUsers%5cx",
    "share": "%5c%5cserver%5cshare",
    "home": "~root",
    "hidden": ".ssh",
    "option": "-rf",
    "newline": "a%0aINFO forged line",
    "carriage return": "a%0d%0aSet-Cookie: x",
    "line separator": "a%e2%80%a8b",
    "right to left": "a%e2%80%aegz",
    "NUL": "a%00.nii.gz",
    "space": "%20",
    "long": "a" * 5000,
    "fullwidth dots": "%ef%bc%8e%ef%bc%8e%ef%bc%8fx",
    "two dot leader": "%e2%80%a5%ef%bc%8fx",
    "not UTF-8": "%ff%fe",
}


@pytest.fixture
def client(tmp_path: Path) -> Client:
    (tmp_path / "labels" / "final").mkdir(parents=True)
    return Client(tmp_path)


def refused(client: Client, method: str, address: str, *, status: int | None = None, **rest: object) -> str:
    """Send a request that must not pass; return the reason, one line."""
    got, reason = client.send(method, address, **rest)  # type: ignore[arg-type]
    assert 400 <= got < 500 and reason and "\n" not in reason and len(reason) < 300, (got, reason)
    assert status is None or got == status, (got, reason)
    assert not client.behind.seen
    return reason


@pytest.mark.parametrize("trick", TRICKS)
def test_no_id_of_an_image_leaves_the_studies(client: Client, trick: str):
    for method, start in WITH_IMAGE.values():
        refused(client, method, start + TRICKS[trick])


@pytest.mark.parametrize("trick", TRICKS)
def test_no_name_in_an_address_leads_elsewhere(client: Client, trick: str):
    for method, pattern in WITH_NAME.values():
        refused(client, method, pattern.replace("{}", TRICKS[trick]))


@pytest.mark.parametrize("name", ["phantom_001", "Müller T1 (2).v3", "頭部", "a+b", "scan..1", "100%"])
def test_ids_of_common_names_pass_unchanged(client: Client, name: str):
    from urllib.parse import parse_qs, quote

    assert client.send("GET", f"/datastore/image?image={quote(name)}") == (200, "")
    assert parse_qs(client.behind.seen[0].query) == {"image": [name]}


def test_ids_on_a_dicomweb_server_are_uids():
    client = Client(None)
    assert client.send("POST", f"/infer/{MODEL}?image=1.2.840.113619.2.1") == (200, "")
    client.behind.seen.clear()
    for wrong in ("phantom_001", "..", "1", "1..2", "1.2.840." + "1" * 64, "1.2%00", "1.2/3"):
        refused(client, "POST", f"/infer/{MODEL}?image={wrong}", status=400)


def links(folder: Path, outside: Path) -> Iterator[tuple[str, str]]:
    """Make links that lead outside, and yield requests that would follow them."""
    outside.mkdir()
    (outside / "scan.nii.gz").write_bytes(b"scan")
    (folder / "labels" / "final").mkdir(parents=True)
    (folder / "scan.nii.gz").symlink_to(outside / "scan.nii.gz")
    (folder / "dangling.nrrd").symlink_to(outside / "to_be_made.nrrd")
    (folder / "labels" / "other").symlink_to(outside)
    (folder / "own.nii.gz").write_bytes(b"scan")
    (folder / "labels" / "final" / "own.nii.gz").symlink_to(outside / "scan.nii.gz")
    for name in ("scan", "dangling", "own"):
        for address in WITH_IMAGE:
            method, start = WITH_IMAGE[address]
            yield method, start + name
    yield "PUT", "/datastore/label?image=a&tag=other"


def test_links_out_of_the_studies_are_not_followed(tmp_path: Path):
    (tmp_path / "studies").mkdir()
    client = Client(tmp_path / "studies")
    for method, address in links(tmp_path / "studies", tmp_path / "outside"):
        got, reason = client.send(method, address)
        assert got == 403 or (got == 400 and "states no" in reason), (address, got, reason)
    refused(client, "POST", f"/batch/infer/{MODEL}", status=403, body=b'{"label_tag": "other"}', **JSON)
    assert client.send("GET", "/datastore/image?image=absent")[0] == 200


def test_a_link_to_the_studies_themselves_is_no_link_out(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scan.nii.gz").touch()
    (tmp_path / "studies").symlink_to(tmp_path / "data")
    assert Client(tmp_path / "studies").send("GET", "/datastore/image?image=scan")[0] == 200


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("GET", "/info/"),
        ("GET", "/datastore/?output=all"),
        ("GET", "/logs/"),
        ("GET", "/ohif/"),
        ("POST", f"/train/{MODEL}"),
        ("DELETE", "/datastore/image?id=a"),
        ("OPTIONS", f"/train/{MODEL}"),
        ("GET", "/no/such/address"),
    ],
)
def test_pages_of_other_servers_reach_nothing(client: Client, method: str, address: str):
    for origin in (
        "http://evil.example",
        "https://127.0.0.1",
        "http://127.0.0.1:3000",
        "http://localhost:8000",
        "http://127.0.0.1:8000.evil.example",
        "http://evil.example@127.0.0.1:8000",
        "null",
        "file://",
        "",
    ):
        assert "other servers" in refused(client, method, address, status=403, origin=origin)
    for site in ("cross-site", "same-site", "Cross-Site", "unknown"):
        refused(client, method, address, status=403, sec_fetch_site=site, sec_fetch_mode="no-cors")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "0.0.0.0:8000",
        "localhost:8000/x",
        "127.0.0.1:8000,evil.example",
        "127.0.0.1:99999999",
        "2130706433",
        "[::1",
        "localhost%00",
        "localhost\t",
        "",
        None,
    ],
)
def test_other_names_of_this_machine_are_refused(client: Client, host: str | None):
    """As where `evil.example` resolves to 127.0.0.1."""
    assert "--allowed_hosts" in refused(client, "GET", "/info/", status=403, host=host)


def test_own_pages_and_other_clients_are_answered(tmp_path: Path):
    client = Client(tmp_path, names=("Reading-Room.example",))
    page = {"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors", "sec_fetch_dest": "empty"}
    for host in ("127.0.0.1:8000", "LOCALHOST:8000", "[::1]:8000", "reading-room.example", "localhost"):
        assert client.send("GET", "/info/", host=host)[0] == 200
        assert client.send("POST", f"/train/{MODEL}", host=host, origin=f"http://{host}", **page)[0] == 200
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert client.send("GET", "/ohif/", **link)[0] == 200
    client.behind.seen.clear()
    refused(client, "GET", "/ohif/", status=403, **link | {"sec_fetch_dest": "iframe"})
    refused(client, "GET", "/datastore/?output=all", status=403, **link)


@pytest.mark.parametrize(
    ("method", "address", "status"),
    [
        ("PUT", f"/model/{MODEL}", 405),
        ("DELETE", f"/model/{MODEL}", 405),
        ("POST", "/reload", 404),
        ("POST", f"/infer/wsi/{MODEL}?image=a", 404),
        ("POST", f"/infer/wsi_v2/{MODEL}?image=a", 404),
        ("GET", "/logs/gpu", 404),
        ("GET", "/docs", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/ohif/../../main.py", 404),
        ("GET", "/ohif/..%2f..%2fmain.py", 404),
        ("GET", "/ohif/..%5c..%5cmain.py", 404),
        ("GET", "/ohif//etc/passwd", 404),
        ("GET", "/static/.git/config", 404),
        ("GET", "/ohif/%00", 404),
        ("TRACE", "/info/", 405),
        ("CONNECT", "/info/", 405),
        ("OPTIONS", "/info/", 405),
    ],
)
def test_addresses_that_are_not_listed_do_not_exist(client: Client, method: str, address: str, status: int):
    refused(client, method, address, status=status)


@pytest.mark.parametrize(
    "path",
    [
        "../tools/execute-script",
        "..%2ftools%2fshutdown",
        "studies/../../tools/reset",
        "studies/..",
        "instances/1.2/../..",
        "wado/system",
        "tools/execute-script",
        "studies%3fx=1",
        "studies%23",
        "studies%0d%0aHost:x",
        "http:%2f%2fevil.example",
        "stow/../instances",
        "studies/1.2/archive/../../x",
        "studies%5c..%5ctools",
        "@evil.example",
    ],
)
def test_no_address_of_the_proxy_leaves_dicomweb(path: str):
    """Orthanc's own API is beside DICOMweb, and executes scripts."""
    for method in ("GET", "POST"):
        refused(Client(None), method, f"/proxy/dicom/{path}", body=b"x", content_type="multipart/related; boundary=b")


def test_the_proxy_passes_dicomweb_on():
    client = Client(None)
    for path in ("studies", "studies/1.2.3/series/4.5/metadata", "wado/studies/1.2/series/3.4/instances/5.6/frames/1"):
        assert client.send("GET", f"/proxy/dicom/{path}?limit=101")[0] == 200
    assert client.send("POST", "/proxy/dicom/studies", b"dicom", content_type="multipart/related; boundary=b")[0] == 200
    assert client.behind.seen[-1].body == b"dicom"
    client.behind.seen.clear()
    refused(client, "POST", "/proxy/dicom/studies/1.2/series", body=b"x", content_type="multipart/related; boundary=b")
    refused(client, "POST", "/proxy/dicom/studies", body=b"x", content_type="text/plain", status=415)
    refused(client, "DELETE", "/proxy/dicom/studies/1.2", status=405)


@pytest.mark.parametrize(
    "query",
    "image=a&image=../b image=a&IMAGE=b image=a&path=/etc image=a;tag=../x&tag=final image=a&output=/etc image[]=a"
    f" imag%65=a&image=b image=a&output=json%0a image=a&{9000 * 'x'}".split(),
    ids=lambda query: query[:30],
)
def test_values_in_an_address_are_known_and_stated_once(client: Client, query: str):
    refused(client, "POST", f"/infer/{MODEL}?{query}")


def test_a_tag_differs_from_another_in_more_than_case(client: Client):
    assert "differs from 'final'" in refused(client, "PUT", "/datastore/label?image=a&tag=Final", status=400)


def test_the_root_leads_to_the_viewer_or_the_state(client: Client):
    assert client.send("GET", "/")[0] == 307 and not client.behind.seen


def test_a_websocket_is_closed(client: Client):
    import asyncio

    guard, sent = load_guard(), []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    app = guard.Guard(client.behind, guard.Hosts(), None, 1)
    asyncio.run(app({"type": "websocket", "path": "/info/"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}] and not client.behind.seen
