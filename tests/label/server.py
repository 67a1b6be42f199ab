"""A MONAI Label server in its own process, and requests to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NAME = "samora_segmentation"
TIMEOUT = 300  # seconds, for a start, a response or a training
# in the environment that `make label` builds
LABEL_PYTHON = os.environ.get("LABEL_PYTHON", str(ROOT / ".venv-label" / "bin" / "python"))


@dataclass(frozen=True)
class Answer:
    """Status and body of a response."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """`label/start.py` on `model` and `studies`, with everything that it writes in `folder`."""

    def __init__(self, folder: Path, model: Path, studies: Path | str, *options: str, **variables: str) -> None:
        self.folder, self.model, self.studies = folder, model, studies
        self.options, self.variables = options, variables
        self.app = folder / "app"
        self.served = self.app / "model" / NAME
        self.log = folder / "server.log"

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        script = [LABEL_PYTHON, ROOT / "label" / "start.py", "--model", self.model, "--studies", self.studies]
        (self.folder / "home").mkdir(exist_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*map(str, script), "--app", str(self.app), "--port", str(self.port), *self.options],
                env=os.environ | {"HOME": str(self.folder / "home")} | self.variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + TIMEOUT
        while True:
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            try:
                assert self.get("/info/").status in (200, 401)
                return
            except urllib.error.URLError:
                time.sleep(0.2)

    def stop(self, with_signal: int = signal.SIGINT) -> int:
        """Stop the server and its child processes; return its exit code."""
        os.kill(self.process.pid, with_signal)
        try:
            return self.process.wait(20)
        finally:
            with contextlib.suppress(ProcessLookupError):  # no child process is left
                os.killpg(self.process.pid, signal.SIGKILL)

    def wait_for(self, words: str) -> None:
        """Wait until the training prints `words`."""
        end = time.monotonic() + TIMEOUT
        while not any(words in line for line in self.get("/train/").json.get("details", [])):
            assert time.monotonic() < end, self.get("/train/").json
            time.sleep(0.2)

    def get(self, path: str, headers: dict[str, str] | None = None, **query: Any) -> Answer:
        return self.send("GET", path, query, headers=headers)

    def post(self, path: str, content: Any, **query: Any) -> Answer:
        return self.send("POST", path, query, json.dumps(content).encode(), "application/json")

    def form(
        self,
        method: str,
        path: str,
        files: dict[str, Path] | None = None,
        given: dict[str, Any] | None = None,
        **query: Any,
    ) -> Answer:
        """A request with `files` and the parameters of inference on the CPU, and those `given`."""
        boundary = uuid.uuid4().hex
        params = json.dumps({"device": "cpu", "result_dtype": "uint8", "result_compress": True} | (given or {}))
        parts = [b'Content-Disposition: form-data; name="params"\r\n\r\n' + params.encode()]
        for name, file in (files or {}).items():
            head = f'Content-Disposition: form-data; name="{name}"; filename="{file.name}"\r\n\r\n'
            parts.append(head.encode() + file.read_bytes())
        body = b"".join(b"--" + boundary.encode() + b"\r\n" + part + b"\r\n" for part in parts)
        body += b"--" + boundary.encode() + b"--\r\n"
        return self.send(method, path, query, body, f"multipart/form-data; boundary={boundary}")

    def infer(self, image: str, file: Path) -> Path:
        """Write the predicted label of `image` to `file`."""
        answer = self.form("POST", f"/infer/{NAME}", image=image, output="image")
        assert answer.status == 200, answer.body
        file.write_bytes(answer.body)
        return file

    def train(self, **request: Any) -> dict[str, Any]:
        """Train, and return the finished task."""
        answer = self.post(f"/train/{NAME}", {"device": "cpu"} | request)
        assert answer.status == 200, answer.body
        end = time.monotonic() + TIMEOUT
        while (task := self.get("/train/").json)["status"] in ("SUBMITTED", "RUNNING"):
            assert time.monotonic() < end, task
            time.sleep(0.5)
        return task

    def send(
        self,
        method: str,
        path: str,
        query: dict[str, Any],
        body: bytes | None = None,
        kind: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        address = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(query)}"
        headers = (headers or {}) | ({} if kind is None else {"Content-Type": kind})
        request = urllib.request.Request(address, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return Answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read())
