"""The guard in front of MONAI Label: forms, uploaded volumes, settings in JSON, sizes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from tests.label.asgi import LIMIT, Client, form, load_guard
from tests.label.test_guard import MODEL, refused

UPLOAD, INFER = "/datastore/image?image=a", f"/infer/{MODEL}?image=a"
NIFTI = Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4)).to_bytes()
SCAN = gzip.compress(NIFTI)
NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: %b\nendian: little\n\n%b"
PACKED = NRRD % (b"gzip", gzip.compress(NIFTI[352:]))


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


def send_form(client: Client, method: str, address: str, *fields: Any, **rest: Any) -> tuple[int, str]:
    body, kind = form(*fields)
    return client.send(method, address, body, content_type=kind, **rest)


def refused_form(client: Client, method: str, address: str, *fields: Any, status: int | None = None) -> str:
    body, kind = form(*fields)
    return refused(client, method, address, body=body, content_type=kind, status=status)


# ---- forms


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scan.nii.gz", SCAN),
        ("/tmp/tmp1.nii", NIFTI),
        (r"C:\Users\me\a.b.nrrd", NRRD % (b"raw", NIFTI[352:])),
        ("../../app/main.py/x.seg.nrrd", PACKED),
    ],
)
def test_scans_pass_under_a_name_of_the_guard(client: Client, name: str, content: bytes):
    """3D Slicer sends the whole path of its file as the name."""
    fields = (("params", None, b'{"client_id": "u@slicer"}'), ("file", name, content))
    assert send_form(client, "PUT", UPLOAD, *fields) == (200, "")
    parts = client.behind.seen[0].parts
    suffix = next(s for s in (".nii.gz", ".nii", ".seg.nrrd", ".nrrd") if name.endswith(s))
    assert parts["file"] == (f"upload{suffix}", content)
    assert json.loads(parts["params"][1]) == {"client_id": "u@slicer"}
    assert client.behind.seen[0].query == "image=a"


def test_without_an_id_the_last_part_of_the_name_is_it(client: Client):
    assert send_form(client, "PUT", "/datastore/image", ("file", "/tmp/x/scan 7.nii.gz", SCAN)) == (200, "")
    assert client.behind.seen[0].query == "image=scan+7"
    client.behind.seen.clear()
    for name in ("...nii.gz", ".nii.gz", "/etc/.nii.gz", "a%2fb.nii.gz", "~.nii.gz"):
        refused_form(client, "PUT", "/datastore/image", ("file", name, SCAN), status=400)


@pytest.mark.parametrize(
    "name", ["main.py", "x.sh", "x.nii.gz.py", "x.NII.GZ", "x", "", "x.json", "x.svs", "x.pt", "x.gz"]
)
def test_other_files_are_refused(client: Client, name: str):
    for method, address, field in (
        ("PUT", UPLOAD, "file"),
        ("POST", INFER, "file"),
        ("POST", INFER, "label"),
        ("PUT", "/datastore/label?image=a&tag=final", "label"),
        ("PUT", "/session/", "files"),
    ):
        assert ".nii.gz" in refused_form(client, method, address, (field, name, SCAN), status=415)


HEAD = b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n{}\r\n'


@pytest.mark.parametrize(
    "body",
    [
        HEAD + HEAD + b"--b--\r\n",
        HEAD + b"--b--\r\n--b\r\nanother form",
        HEAD,
        HEAD[2:] + b"--b--\r\n",
        b"preamble\r\n" + HEAD + b"--b--\r\n",
        HEAD.replace(b'name="params"', b'name="params"; name="file"') + b"--b--\r\n",
        HEAD.replace(b'name="params"', b"name=params") + b"--b--\r\n",
        HEAD.replace(b'name="params"', b"name*=utf-8''params") + b"--b--\r\n",
        HEAD.replace(b'name="params"', b'name="file"; filename="a.nii.gz"; filename*=utf-8\'\'main.py') + b"--b--\r\n",
        HEAD.replace(b'name="params"', b'name="file"; filename="a.py\0.nii.gz"') + b"--b--\r\n",
        HEAD.replace(b'name="params"', b'name="par\xc3\xa4ms"') + b"--b--\r\n",
        HEAD.replace(b'name="params"', b'name="params"\r\nX-Header: 1') + b"--b--\r\n",
        HEAD.replace(b'name="params"', b'name="params"\r\nContent-Disposition: form-data; name="file"') + b"--b--\r\n",
        HEAD.replace(b'name="params"', b'name="params"\r\nContent-Transfer-Encoding: base64') + b"--b--\r\n",
        HEAD.replace(b'name="params"', b'name="params"; filename="a.nii.gz"') + b"--b--\r\n",
        HEAD.replace(b'name="params"', b'name="user"') + b"--b--\r\n",
        HEAD.replace(b"\r\n", b"\n") + b"--b--\n",
        HEAD.replace(b'"params"', b'"%b"' % (b"x" * 5000)) + b"--b--\r\n",
        b"--b--\r\n",
        b"{}",
    ],
)
def test_a_form_that_two_readers_could_read_differently_is_refused(client: Client, body: bytes):
    refused(client, "PUT", UPLOAD, body=body, content_type="multipart/form-data; boundary=b")


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=b; boundary=c",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=b",
        "multipart/form-data; boundary=b, text/plain",
    ],
)
def test_a_form_states_one_boundary(client: Client, kind: str):
    refused(client, "PUT", UPLOAD, body=HEAD + b"--b--\r\n", content_type=kind)


def test_many_parts_are_refused(client: Client):
    refused(client, "PUT", UPLOAD, body=HEAD * 1000, content_type="multipart/form-data; boundary=b", status=400)


# ---- volumes


def stored(**changed: bytes) -> bytes:
    """The bytes of `NRRD` with fields changed or added."""
    lines = dict(line.split(b": ", 1) for line in NRRD.split(b"\n\n")[0].split(b"\n")[1:])
    lines |= {b"encoding": b"raw"} | {name.replace("_", " ").encode(): value for name, value in changed.items()}
    return b"NRRD0004\n" + b"".join(b"%b: %b\n" % pair for pair in lines.items()) + b"\n" + NIFTI[352:]


def with_shape(*shape: int) -> bytes:
    head = Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4)).header
    head["dim"][: len(shape) + 1] = (len(shape), *shape)
    return bytes(head.binaryblock) + bytes(4 + 240)


@pytest.mark.parametrize(
    ("name", "content", "status"),
    {
        "empty": ("x.nii.gz", b"", 400),
        "text": ("x.nii.gz", b"import os", 400),
        "not packed": ("x.nii.gz", NIFTI, 400),
        "packed": ("x.nii", SCAN, 400),
        "cut": ("x.nii.gz", SCAN[:-20], 400),
        "voxels missing": ("x.nii.gz", gzip.compress(NIFTI[:-2]), 400),
        "head only": ("x.nii", NIFTI[:348], 400),
        "damaged": ("x.nii.gz", SCAN[:40] + b"\0\0\0" + SCAN[43:], 400),
        "another member": ("x.nii.gz", SCAN + b"#!/bin/sh", 400),
        "bomb behind the voxels": ("x.nii.gz", gzip.compress(NIFTI + bytes(LIMIT * 20)), 413),
        "bomb in members": ("x.nii.gz", SCAN + gzip.compress(bytes(LIMIT)) * 3, 413),
        "very many members": ("x.nii.gz", SCAN + gzip.compress(b"") * 80_000, 400),
        "huge shape": ("x.nii", with_shape(30000, 30000, 30000), 413),
        "no voxels": ("x.nii", with_shape(0, 4, 4), 400),
        "negative": ("x.nii", with_shape(-4, 4, 4), 400),
        "voxels in another file": ("x.nii", NIFTI[:344] + b"ni1\0" + NIFTI[348:], 400),
        "Analyze": ("x.nii", NIFTI[:344] + bytes(4) + NIFTI[348:], 400),
        "not NRRD": ("x.nrrd", NIFTI, 400),
        "NRRD of another file": ("x.nrrd", stored(data_file=b"/etc/passwd"), 400),
        "NRRD of another file, by its other name": ("x.nrrd", stored(datafile=b"/etc/passwd"), 400),
        "NRRD of a list of files": ("x.seg.nrrd", stored(Data_File=b"LIST"), 400),
        "NRRD, second end of the head": (
            "x.nrrd",
            stored().replace(b"\n\n", b"\n\r\n").replace(b"endian", b"data file: /etc/passwd\nendian"),
            400,
        ),
        "NRRD, bytes skipped": ("x.nrrd", stored(byte_skip=b"-1"), 400),
        "NRRD, huge": ("x.nrrd", stored(sizes=b"30000 30000 30000"), 413),
        "NRRD, odd sizes": ("x.nrrd", stored(sizes=b"4 -5 6"), 400),
        "NRRD, unknown encoding": ("x.nrrd", stored(encoding=b"hex"), 400),
        "NRRD, twice": ("x.nrrd", stored(Type=b"double", type=b"short"), 400),
        "NRRD, cut": ("x.nrrd", stored()[:-1], 400),
        "NRRD, bomb": ("x.nrrd", NRRD % (b"gzip", gzip.compress(bytes(LIMIT * 20))), 413),
    }.values(),
)
def test_damaged_and_hostile_volumes_are_refused(client: Client, name: str, content: bytes, status: int):
    for method, address, field in (("PUT", UPLOAD, "file"), ("PUT", "/datastore/label?image=a", "label")):
        refused_form(client, method, address, (field, name, content), status=status)


# ---- settings


@pytest.mark.parametrize(
    "settings",
    [
        '{"image": "/etc/passwd"}',
        '{"image_path": "/etc/passwd"}',
        '{"model": "../other"}',
        '{"session": {}}',
        '{"path": "/x"}',
        '{"bundle_path": "/tmp"}',
        '{"images": ["/etc/passwd"]}',
        '{"images": "/etc/passwd"}',
        "{\"device\": \"$__import__('os').system('id')\"}",
        '{"device": ["cpu", "$exit()"]}',
        '{"gpus": "0;id"}',
        '{"run_id": "$exit()"}',
        '{"run_id": "initialize"}',
        '{"tracking": "mlflow"}',
        '{"tracking_uri": "http://evil.example"}',
        '{"tracking_experiment_name": "@run"}',
        '{"tracking_run_name": "../../x"}',
        '{"model_filename": "../../../tmp/x.pt"}',
        '{"model_filename": "/tmp/x.pt"}',
        '{"model_filename": ["model.pt", "/tmp/x.pt"]}',
        '{"result_extension": "/../../../tmp/x.nii.gz"}',
        '{"result_extension": ".sh"}',
        '{"result_dtype": "object"}',
        '{"result_write_to_file": false}',
        '{"skip_writer": true}',
        '{"save_label": "yes"}',
        '{"label_tag": "../../x"}',
        '{"label_tag": ".."}',
        '{"label": "../x"}',
        '{"logging": "/tmp/x"}',
        '{"max_epochs": 1e9}',
        '{"max_epochs": true}',
        '{"max_epochs": "10"}',
        '{"max_workers": 100000}',
        '{"val_split": NaN}',
        '{"val_split": 1e999}',
        '{"foreground": [[1, 2, "/etc/passwd"]]}',
        '{"unknown": "/etc/passwd"}',
        '{"unknown": {"image": "/x"}}',
        '{"../key": 1}',
        '{"network_def#_target_": 1, "__class__": {"a": "b"}}',
        '{"label_info": [{"name": "a", "segmentAttribute": {"x": 1}}]}',
        '{"label_info": [{"name": "a\\nb"}]}',
        '{"max_epochs": 1, "max_epochs": 2}',
        "[" * 100_000 + "]" * 100_000,
        '{"a": ' + "[" * 50_000 + "]" * 50_000 + "}",
        "[]",
        "1",
        "{",
        '{"a": 1' + "0" * 5000 + "}",
        "\ufeff{}",
    ],
    ids=lambda text: text[:50],
)
def test_settings_name_no_files_and_execute_nothing(client: Client, settings: str):
    body = settings.encode()
    refused_form(client, "POST", INFER, ("params", None, body))
    for address in (f"/batch/infer/{MODEL}", f"/train/{MODEL}", "/train/", "/scoring/dice", "/activelearning/random"):
        refused(client, "POST", address, body=body, content_type="application/json")
    nested = f'{{"{MODEL}": {settings}}}'
    if settings not in ("1", "[]"):
        refused(client, "POST", "/train/", body=nested.encode(), content_type="application/json")


def test_settings_of_the_viewers_pass(client: Client):
    slicer = {"device": ["cpu"], "model_filename": "model.pt", "result_extension": ".nrrd", "result_dtype": "uint8"}
    slicer |= {"client_id": "user-xyz", "foreground": [[3, 4, 5]], "background": [], "label": "left kidney"}
    ohif = {"result_extension": ".nrrd", "result_compress": False, "restore_label_idx": False, "label_prompt": [1, 2]}
    ohif |= {"left kidney": [[1, 2, 3]], "points": [[1.5, 2, 3]], "device": "NVIDIA RTX A6000:1"}
    for settings in (slicer, ohif):
        assert send_form(client, "POST", INFER, ("params", None, json.dumps(settings).encode())) == (200, "")
        assert json.loads(client.behind.seen[-1].parts["params"][1]) == settings
    train = {"device": "cpu", "pretrained": True, "max_epochs": 50, "val_split": 0.2, "multi_gpu": True, "gpus": "all"}
    train |= {"tracking": "None", "tracking_uri": "", "tracking_experiment_name": "", "run_id": "", "client_id": "x"}
    train |= {"model_filename": "model.pt"}
    for address, settings in ((f"/train/{MODEL}", train), ("/train/", {MODEL: train}), ("/train/", {})):
        body = json.dumps(settings).encode()
        assert client.send("POST", address, body, content_type="application/json") == (200, "")
        assert client.behind.seen[-1].json == settings
    labels = {"label_info": [{"name": "Leber / Milz", "idx": 1, "color": [1, 2, 3]}], "client_id": "u"}
    fields = (("params", None, json.dumps(labels).encode()), ("label", "/tmp/l.nii.gz", SCAN))
    assert send_form(client, "PUT", "/datastore/label?image=a&tag=final", *fields) == (200, "")


def test_a_page_cannot_send_settings_as_plain_text(client: Client):
    """What a page of another server may send without asking first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", ""):
        refused(client, "POST", f"/train/{MODEL}", body=b'{"max_epochs": 1}', content_type=kind, status=415)


def test_notes_cannot_move_an_image(client: Client):
    for note in ({"path": "/etc/passwd"}, {"name": "../x.nii.gz"}, {"a/b": 1}, {"x": "a\nb"}, {"ts": 0}):
        for address in ("/datastore/image/info?image=a", "/datastore/label/info?label=a&tag=final"):
            refused_form(client, "PUT", address, ("info", None, json.dumps(note).encode()), status=400)
    assert send_form(client, "PUT", "/datastore/image/info?image=a", ("info", None, b'{"note": "blurred"}')) == (
        200,
        "",
    )


def test_the_hook_completes_and_refuses(tmp_path: Path):
    guard = load_guard()

    def hook(request: Any) -> None:
        if request.path.startswith("/train"):
            raise guard.Refusal(409, "no labels")
        request.settings["multi_gpu"] = False

    client = Client(tmp_path, hook=hook)
    assert refused(client, "POST", f"/train/{MODEL}", status=409) == "no labels"
    assert (
        client.send("POST", f"/batch/infer/{MODEL}", b'{"multi_gpu": true}', content_type="application/json")[0] == 200
    )
    assert client.behind.seen[0].json == {"multi_gpu": False}


def test_without_a_login_no_body_is_read(tmp_path: Path):
    guard = load_guard()

    def admit(headers: dict[str, list[str]]) -> None:
        if headers.get("authorization") != ["Bearer t"]:
            raise guard.Refusal(401, "a login is needed")

    client = Client(tmp_path, admit=admit)
    body = iter([b"--b"])
    kind = "multipart/form-data; boundary=b"
    for address in (UPLOAD, "/session/", "/datastore/label?image=a"):
        assert refused(client, "PUT", address, body=body, content_type=kind, status=401) == "a login is needed"
    assert next(body) == b"--b"
    assert client.send("POST", f"/train/{MODEL}", authorization="Bearer t")[0] == 200
    assert client.send("POST", "/auth/token", b"x=1", content_type="application/x-www-form-urlencoded")[0] == 200


# ---- sizes


def test_more_than_the_limit_is_refused_when_it_is_announced(client: Client):
    for announced in ("10000000000", str(LIMIT + 1), "9" * 30, "-1", "1e3", "0x10", " 5", "²"):
        refused(client, "PUT", UPLOAD, content_length=announced, content_type="multipart/form-data; boundary=b")
    refused(client, "POST", f"/train/{MODEL}", content_length="100000000", content_type="application/json", status=413)
    refused(client, "GET", "/info/", content_length="1", body=b"x", status=413)


def test_more_than_the_limit_is_refused_when_it_comes(client: Client):
    """A body of unknown length is not read to its end."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
        while True:
            sent += 1 << 16
            yield bytes(1 << 16)

    kind = "multipart/form-data; boundary=b"
    refused(client, "PUT", UPLOAD, body=endless(), content_type=kind, transfer_encoding="chunked", status=413)
    assert sent <= LIMIT + (1 << 16)


def test_a_length_is_stated_once(client: Client):
    """Otherwise a proxy and the server could see different requests."""
    both = {"content_length": "2", "transfer_encoding": "chunked", "content_type": "application/json"}
    assert "not both" in refused(client, "POST", f"/train/{MODEL}", body=b"{}", status=400, **both)


def test_a_body_that_stops_is_given_up(client: Client):
    kind = "multipart/form-data; boundary=b"
    refused(client, "PUT", UPLOAD, body=iter([b"--b", "wait"]), content_type=kind, patience=0.05, status=408)


def test_a_scan_larger_than_memory_passes(tmp_path: Path):
    big = Nifti1Image(np.random.default_rng(0).integers(0, 99, (100, 100, 70), np.int16), np.eye(4)).to_bytes()
    client = Client(tmp_path)
    assert len(big) > 1 << 20
    body, kind = form(("file", "big.nii", big))
    pieces = (body[start : start + 99_999] for start in range(0, len(body), 99_999))
    assert client.send("PUT", UPLOAD, pieces, content_type=kind) == (200, "")
    assert client.behind.seen[0].parts["file"] == ("upload.nii", big)
