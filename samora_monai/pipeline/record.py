"""What a stage was made from, in a small file, by which a finished stage is recognised."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from samora_monai.checkpoints.files import file_sha256
from samora_monai.data.scans import fingerprint
from samora_monai.errors import InputError, MissingFileError
from samora_monai.replacing import replacing

_STARTED, _FINISHED = "started", "finished"


@dataclass(frozen=True)
class Record:
    """The record of one stage.

    Args:
        path: JSON file.
        made_from: everything that the results depend on, as JSON knows it; equal contents mean equal results.
    """

    path: Path
    made_from: Mapping[str, Any]

    def is_finished(self, results: Iterable[Path]) -> bool:
        """Whether the stage was finished from the same, and its results are there."""
        return self._has(_FINISHED) and all(path.exists() for path in results)

    def is_started(self) -> bool:
        """Whether the stage was started from the same and not finished, so that it can go on."""
        return self._has(_STARTED)

    def changes(self) -> list[str]:
        """Names of what differs from an earlier run of the stage; none if there was no run."""
        old = self._read().get("made_from", {})
        if not isinstance(old, dict) or not old:
            return []
        flat = [_flat(json.loads(json.dumps(part))) for part in (old, dict(self.made_from))]
        return sorted(name for name in flat[0].keys() | flat[1].keys() if flat[0].get(name) != flat[1].get(name))

    def remove(self) -> None:
        """Forget the stage."""
        self.path.unlink(missing_ok=True)

    def start(self) -> None:
        """Write that the stage has started."""
        self._write({"state": _STARTED})

    def finish(self, **facts: Any) -> None:
        """Write that the stage is finished, with further facts such as its time."""
        self._write({"state": _FINISHED, **facts})

    def facts(self) -> dict[str, Any]:
        """What `finish` was given, of a finished stage."""
        return {name: value for name, value in self._read().items() if name not in ("state", "made_from", "hash")}

    def _has(self, state: str) -> bool:
        found = self._read()
        return found.get("state") == state and found.get("hash") == settings_hash(self.made_from)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a damaged record means that the stage is made again
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self, content: Mapping[str, Any]) -> None:
        content = {**content, "hash": settings_hash(self.made_from), "made_from": self.made_from}
        try:
            with replacing(self.path) as unfinished:
                unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"cannot write '{self.path}': {error.strerror}; free space or choose another folder"
            ) from error


def settings_hash(settings: Any) -> str:
    """The first 12 digits of the SHA-256 of settings as JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def file_hash(path: str | os.PathLike[str]) -> str:
    """The first 12 digits of the SHA-256 of a file; raise a `MissingFileError` if there is none."""
    try:
        stat = os.stat(path)
        return _file_hash(os.fspath(path), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise MissingFileError(f"'{path}' cannot be read: {error.strerror}; give the path of the file") from error


@lru_cache
def _file_hash(path: str, size: int, time_ns: int) -> str:
    # several stages read the same base, whose file may have gigabytes
    return file_sha256(path)[:12]


def scans_hash(scans: Iterable[str]) -> str:
    """A hash of the paths of scans, and of the size and modification time of their files."""
    return settings_hash([(scan, fingerprint(scan)) for scan in sorted(set(scans))])


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {prefix: settings}
    parts: dict[str, Any] = {}
    for name, value in settings.items():
        parts |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return parts
