"""What the background computes of the scans: files in the app's folder, one writer, any number of readers.

MONAI Label's `datastore_v2.json` is no place for it: the background is a process of its own, and what it wrote there
could undo a label that the server stored meanwhile. The server itself copies the scores from here to its datastore.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samora_monai.replacing import replacing
from samora_monai.selection import Anatomy


def file_key(path: str | os.PathLike[str]) -> str:
    """A key that changes when a file does; empty if there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return ""
    return f"{stat.st_size}-{stat.st_mtime_ns}"


class Store:
    """Features and scores of scans.

    Args:
        folder: is made when something is written.
        base: key of the network that computes the features; others are not read.
    """

    def __init__(self, folder: Path, base: str) -> None:
        self.folder, self.base = folder, base
        self._loaded: dict[str, tuple[str, np.ndarray, Anatomy]] = {}

    def _features_file(self, image: str) -> Path:
        return self.folder / "features" / f"{hashlib.sha256(f'{self.base} {image}'.encode()).hexdigest()[:32]}.npz"

    def has_features(self, image: str) -> bool:
        return self._features_file(image).is_file()

    def write_features(self, image: str, cells: np.ndarray, anatomy: Anatomy) -> None:
        file = self._features_file(image)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as unfinished, open(unfinished, "wb") as stream:
            np.savez(stream, cells=cells, reduced=anatomy.reduced.numpy(), level=anatomy.level)

    def features(self, images: list[str]) -> tuple[dict[str, np.ndarray], dict[str, Anatomy]]:
        """Features and anatomy of those of the images that have them; a damaged file counts as none."""
        for image in images:
            file = self._features_file(image)
            key = file_key(file)
            if key and self._loaded.get(image, ("",))[0] != key:
                try:
                    with np.load(file, allow_pickle=False) as parts:
                        anatomy = Anatomy.restored(torch.from_numpy(parts["reduced"]), int(parts["level"]))
                        self._loaded[image] = (key, parts["cells"], anatomy)
                except (OSError, ValueError, KeyError):
                    file.unlink(missing_ok=True)  # computed again
                    self._loaded.pop(image, None)
        known = [image for image in images if image in self._loaded]
        return {i: self._loaded[i][1] for i in known}, {i: self._loaded[i][2] for i in known}

    def scores(self, model: str) -> dict[str, float]:
        """Uncertainty of images by the model with this key; empty if another model computed what is stored."""
        stored = self._read("scores.json")
        return stored.get("scores", {}) if stored.get("model") == model else {}

    def write_scores(self, model: str, scores: Mapping[str, float]) -> None:
        self._write("scores.json", {"model": model, "scores": scores})

    def failed(self, image: str, key: str) -> bool:
        """Whether the file of an image, with this key, could not be read before."""
        return self._read("failures.json").get(image, {}).get("file") == key

    def has_failed(self, image: str) -> bool:
        """Whether an image could not be read, whatever its file is now."""
        return image in self._read("failures.json")

    def write_failure(self, image: str, key: str, reason: str) -> None:
        self._write("failures.json", self._read("failures.json") | {image: {"file": key, "reason": reason}})

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / name).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / name) as unfinished:
            unfinished.write_text(json.dumps(content))
