"""A real server under attack, killed at work, and with logins: `make test-label`.

The tests share a server, and each continues from the state that the one before it left.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from samora_monai.synthetic.phantoms import write_phantoms
from tests.bundles.test_workflow import write_dicom
from tests.label.models import write_model
from tests.label.server import LABEL_PYTHON, NAME, ROOT, Server
from tests.label.test_guard import TRICKS, WITH_IMAGE, WITH_NAME

LIMIT_GB = "0.002"
SCANS = ("phantom_001", "phantom_002", "phantom_003", "phantom_004")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_phantoms(folder, num_training=4, num_validation=1, shape=(48, 48, 8))
    return folder


def new_server(folder: Path, data: Path, *options: str, **variables: str) -> Server:
    write_model(folder / "bundle")
    (folder / "studies").mkdir()
    for name in SCANS:
        shutil.copy(data / "imagesTr" / f"{name}.nii.gz", folder / "studies")
    (folder / "studies" / "link.nii.gz").symlink_to(data / "imagesVal" / "phantom_005.nii.gz")
    (folder / "studies" / "._phantom_001.nii.gz").write_bytes(b"of a Mac")
    return Server(folder, folder / "bundle", folder / "studies", *options, **variables)


@pytest.fixture(scope="module")
def server(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = new_server(tmp_path_factory.mktemp("server"), data, "--max_upload_gb", LIMIT_GB)
    server.start()
    yield server
    if server.process.poll() is None:
        server.stop()


def state(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; the log, and what belongs to a running process, are left out."""
    left_out = ("server.log", "logs", "tmp", "__pycache__", ".cache")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not set(path.relative_to(folder).parts) & set(left_out)
    }


def sent_raw(server: Server, start: bytes, piece: bytes = b"") -> tuple[int, int]:
    """Send bytes as they are, then `piece` until the server answers; return the status and the bytes sent."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(start)
        sent, answer = len(start), b""
        connection.settimeout(0.05 if piece else 30)
        while not answer:
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(1000)
            with contextlib.suppress(TimeoutError, ConnectionError):
                sent += connection.send(piece) if piece and not answer else 0
    return int(answer.split()[1]), sent


# ---- attacks


def test_no_trick_changes_or_reads_anything(server: Server):
    """Each trick of the guard's own tests, on each address that takes an id or a name, over HTTP."""
    before = state(server.folder)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    addresses = [(method, start + "{}") for method, start in WITH_IMAGE.values()] + list(WITH_NAME.values())
    for trick in TRICKS.values():
        for method, pattern in addresses:
            address = pattern.replace("{}", trick).replace(" ", "%20")
            connection.request(method, address, b"", {"Content-Type": "multipart/form-data; boundary=b"})
            answer = connection.getresponse()
            text = answer.read()
            assert 400 <= answer.status < 500, (method, address, answer.status, text)
            assert method == "HEAD" or (b"root:" not in text and b"Traceback" not in text)
    assert state(server.folder) == before


def test_pages_of_other_servers_neither_read_nor_change(server: Server):
    before = state(server.folder)
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example"},
        {"Host": f"evil.example:{server.port}"},
    ):
        for method, address in (("GET", "/info/"), ("GET", "/datastore/"), ("DELETE", "/datastore/image")):
            answer = server.send(method, address, {"id": "phantom_001"} if method == "DELETE" else {}, headers=headers)
            assert answer.status == 403 and list(answer.json) == ["detail"], answer.body
    own = f"http://127.0.0.1:{server.port}"
    assert server.get("/info/", {"Origin": own, "Sec-Fetch-Site": "same-origin"}).status == 200
    assert b"<html" in server.get("/ohif/").body
    assert state(server.folder) == before


def test_settings_are_not_executed(server: Server):
    """A training puts `device` into the bundle's config, where `$` starts an expression of Python."""
    mark = server.folder / "executed"
    expression = f"$__import__('pathlib').Path({str(mark)!r}).touch()"
    boundary = "b"
    for settings in (
        {"device": expression},
        {"device": [expression]},
        {"image": "/etc/passwd"},
        {"run_id": expression},
    ):
        text = json.dumps(settings)
        body = f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n\r\n{text}\r\n--{boundary}--\r\n'
        kind = f"multipart/form-data; boundary={boundary}"
        assert server.send("POST", f"/infer/{NAME}", {"image": "phantom_001"}, body.encode(), kind).status == 400
        assert server.post(f"/train/{NAME}", settings).status == 400
        assert server.post(f"/batch/infer/{NAME}", settings).status == 400
    assert not mark.exists()


def test_ten_gigabytes_are_not_waited_for(server: Server):
    head = b"PUT /datastore/image?image=big HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += b"Content-Type: multipart/form-data; boundary=b\r\n"
    assert sent_raw(server, head + b"Content-Length: 10000000000\r\n\r\n")[0] == 413
    piece = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    status, sent = sent_raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n", piece)
    assert status == 413 and sent < 20 * float(LIMIT_GB) * 1e9
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert sent_raw(server, head + both)[0] == 400
    assert not (server.studies / "big.nii.gz").exists()


def test_unreadable_uploads_are_refused(server: Server, tmp_path: Path):
    before = state(server.folder)
    whole = (server.studies / "phantom_001.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[:2000])
    (tmp_path / "main.py").write_text("raise SystemExit")
    (tmp_path / "x.nrrd").write_text(
        "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: /etc/passwd\n\n"
    )
    for file in tmp_path.iterdir():
        assert server.form("PUT", "/datastore/image", {"file": file}, image="new").status in (400, 415)
        assert server.form("PUT", "/datastore/label", {"label": file}, image="phantom_001").status in (400, 415)
        assert server.form("POST", f"/infer/{NAME}", {"file": file}).status in (400, 415)
    assert state(server.folder) == before


def test_what_is_refused_is_logged_in_one_line(server: Server):
    size = server.log.stat().st_size
    assert server.get("/datastore/image", image="a\nINFO forged").status == 400
    lines = [line for line in server.log.read_bytes()[size:].decode().splitlines() if "forged" in line]
    assert len(lines) == 1 and "error: GET /datastore/image: an image's id" in lines[0]


# ---- work


def finished(server: Server, address: str) -> dict[str, Any]:
    end = time.monotonic() + 300
    while (task := server.get(address).json)["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < end, task
        time.sleep(0.5)
    return dict(task)


def test_the_documented_batch_command_works_without_a_gpu(server: Server):
    """And the server, another process, knows the labels."""
    assert server.post(f"/batch/infer/{NAME}", {"max_workers": 1}, images="unlabeled").status == 200
    task = finished(server, "/batch/infer")
    assert task["status"] == "DONE", task
    assert sorted(path.name for path in (server.studies / "labels" / "original").iterdir()) == [
        f"{name}.nii.gz" for name in SCANS
    ]
    end = time.monotonic() + 20
    while server.get("/info/").json["datastore"]["label_tags"] != {"original": 4}:
        assert time.monotonic() < end, server.get("/info/").json["datastore"]
        time.sleep(0.2)


def half_a_submission(server: Server, label: Path) -> socket.socket:
    """Send a part of a label, and leave the connection open."""
    connection = socket.create_connection(("127.0.0.1", server.port), 30)
    head = 'Content-Disposition: form-data; name="label"; filename="l.nii.gz"'
    body = f"--b\r\n{head}\r\n\r\n".encode() + label.read_bytes()
    request = "PUT /datastore/label?image=phantom_003&tag=final HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    request += f"Content-Length: {len(body) + 9}\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n"
    connection.sendall(request.encode() + body)
    return connection


@pytest.mark.parametrize("task", ["inference", "submission", "many submissions", "batch", "training"])
def test_a_kill_leaves_whole_files_and_a_server_that_starts(server: Server, data: Path, task: str):
    labels = data / "labelsTr"
    model = (server.served / "models" / "model.pt").read_bytes()
    for name in SCANS[:2]:
        assert server.form("PUT", "/datastore/label", {"label": labels / f"{name}.nii.gz"}, image=name).status == 200
    stop, threads = threading.Event(), []

    def submit() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                server.form("PUT", "/datastore/label", {"label": labels / "phantom_002.nii.gz"}, image="phantom_002")
                server.form("PUT", "/datastore/image", {"file": data / "imagesVal" / "phantom_005.nii.gz"}, image="new")

    def infer() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.form("POST", f"/infer/{NAME}", image="phantom_004", output="image")

    connection = None
    if task == "submission":
        connection = half_a_submission(server, labels / "phantom_003.nii.gz")
    elif task == "training":
        assert server.post(f"/train/{NAME}", {"device": "cpu", "max_epochs": 50, "val_split": 0.5}).status == 200
        server.wait_for("epoch 1/50")
    elif task == "batch":
        assert server.post(f"/batch/infer/{NAME}", {}, images="all").status == 200
        end = time.monotonic() + 100
        while server.get("/batch/infer").json["status"] == "SUBMITTED" and time.monotonic() < end:
            time.sleep(0.1)
    else:
        threads = [threading.Thread(target=submit if "many" in task else infer) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(1.0 if task != "inference" else 0.3)
    server.stop(signal.SIGKILL)
    stop.set()
    for thread in threads:
        thread.join()
    if connection is not None:
        connection.close()

    server.start()
    json.loads((server.studies / "datastore_v2.json").read_text())
    for path in server.studies.rglob("[!.]*.nii.gz"):
        np.asanyarray(nib.load(path).dataobj)  # whole
    assert not list(server.studies.rglob("*.unfinished"))
    assert len(list((server.app / "tmp").iterdir())) == 1
    assert (server.served / "models" / "model.pt").read_bytes() == model
    status = server.get("/info/").json["datastore"]
    assert status["label_tags"]["final"] == 2 and status["total"] in (4, 5)
    assert server.form("POST", f"/infer/{NAME}", image="phantom_004", output="image").status == 200


# ---- login

TOKENS = """
import json, sys, time
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
own, other = (rsa.generate_private_key(65537, 2048) for _ in range(2))
public = own.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
def token(role, key=own, algorithm="RS256", seconds=600, **claims):
    claims = {"preferred_username": "u", "realm_access": {"roles": [role]}, "exp": time.time() + seconds} | claims
    return jwt.encode(claims, key, algorithm=algorithm)
print(json.dumps({
    "public": public.decode(), "user": token("monailabel-user"), "admin": token("monailabel-admin"),
    "annotator": token("monailabel-annotator"), "nobody": token("guest"),
    "expired": token("monailabel-admin", seconds=-9),
    "forged": token("monailabel-admin", other), "hmac": token("monailabel-admin", "k" * 32, "HS256"),
    "none": token("monailabel-admin", None, "none"), "for ever": jwt.encode({"preferred_username": "u"}, own, "RS256"),
}))
"""


@pytest.fixture(scope="module")
def tokens() -> dict[str, str]:
    run = subprocess.run([LABEL_PYTHON, "-c", TOKENS], check=True, capture_output=True, text=True)
    return dict(json.loads(run.stdout))


@pytest.fixture
def realm(tokens: dict[str, str]) -> Iterator[str]:
    """What Keycloak answers at the address of a realm."""
    key = "".join(tokens["public"].splitlines()[1:-1])

    class Realm(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            answer = {"public_key": key, "token_endpoint": f"http://{self.headers['Host']}/token"}
            self.wfile.write(json.dumps(answer).encode())

        def do_POST(self) -> None:
            known = b"password=right" in self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"access_token": tokens["user"], "token_type": "Bearer"}).encode())

    keycloak = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Realm)
    threading.Thread(target=keycloak.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{keycloak.server_port}/realms/monailabel"
    keycloak.shutdown()


def test_logins_are_asked_for_and_roles_hold(data: Path, tokens: dict[str, str], realm: str, tmp_path: Path):
    server = new_server(tmp_path, data, MONAI_LABEL_AUTH_ENABLE="true", MONAI_LABEL_AUTH_REALM_URI=realm)
    server.start()

    def status(who: str | None, method: str, address: str, query: dict[str, str] | None = None) -> int:
        headers = {} if who is None else {"Authorization": f"Bearer {tokens.get(who, who)}"}
        return server.send(method, address, query or {}, headers=headers).status

    try:
        assert status("user", "GET", "/info/") == 200
        for who in (None, "expired", "forged", "hmac", "none", "for ever", "a.b.c", ""):
            assert status(who, "GET", "/info/") == 401, who
            assert status(who, "DELETE", "/datastore/image", {"id": "phantom_001"}) == 401, who
        assert status("nobody", "GET", "/info/") == 403
        for who in ("user", "annotator"):
            assert status(who, "DELETE", "/datastore/image", {"id": "phantom_001"}) == 403
        assert (server.studies / "phantom_001.nii.gz").exists()
        assert status("admin", "GET", f"/model/{NAME}") == 200
        assert server.get("/auth/").json["enabled"] is True
        form = "application/x-www-form-urlencoded"
        answer = server.send("POST", "/auth/token", {}, b"username=u&password=right", form)
        assert status(answer.json["access_token"], "GET", "/auth/token/valid") == 200
        assert server.send("POST", "/auth/token", {}, b"username=u&password=wrong", form).status == 401
        assert server.form("PUT", "/datastore/label", image="phantom_001").status == 401
    finally:
        server.stop()


# ---- DICOM SEG

SEGMENTS = """
import pathlib, shutil, sys
import numpy as np, pydicom, SimpleITK
sys.path.insert(0, sys.argv[1])
from samora_segments import dicom_seg_by_value, label_by_name
from monailabel.datastore.utils.convert import dicom_to_nifti
scan = SimpleITK.ReadImage(dicom_to_nifti(sys.argv[2]))
for values in ((1, 3), (2,), ()):
    label = np.zeros(SimpleITK.GetArrayFromImage(scan).shape, np.uint8)
    for value in values:
        label[2:4, 5 * value : 5 * value + 4, 5:9] = value
    image = SimpleITK.GetImageFromArray(label)
    image.CopyInformation(scan)
    SimpleITK.WriteImage(image, sys.argv[3])
    entries = [{"name": name} for name in ("spleen", "kidney", "liver")]
    try:
        file = dicom_seg_by_value({})(sys.argv[2], sys.argv[3], entries)
        folder = pathlib.Path(file + "_series")
        folder.mkdir()
        shutil.copy(file, folder)
        for classes in ({1: "Spleen", 2: "kidney", 3: "liver"}, {1: "heart"}):
            label = SimpleITK.ReadImage(label_by_name(classes)(str(folder), True))
            print(np.unique(SimpleITK.GetArrayFromImage(label)))
    except ValueError as error:
        print(error)
"""


def test_segments_have_the_names_and_values_of_their_classes(data: Path, tmp_path: Path):
    """Written by dcmqi, which `make label` installs, with an organ absent."""
    write_dicom(tmp_path / "series", data / "imagesVal" / "phantom_005.nii.gz")
    modules = ROOT / "label" / "modules"
    command = [LABEL_PYTHON, "-c", SEGMENTS, modules, tmp_path / "series", tmp_path / "label.nii.gz"]
    path = f"{Path(LABEL_PYTHON).parent}:/usr/bin:/bin"
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, env={"PATH": path, "PYTHONPATH": str(modules)}
    )
    lines = run.stdout.strip().splitlines()
    expected = ["[0 1 3]", "segment 'spleen' of", "[0 2]", "segment 'kidney' of", "the label is empty, and a DICOM SEG"]
    assert len(lines) == len(expected), run.stdout + run.stderr
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), run.stdout
