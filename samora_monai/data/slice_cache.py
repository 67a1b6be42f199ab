"""Storage of the slices of a volume: in memory, or in a folder.

The name of a file is a hash of everything that its content depends on, so that a changed scan or setting is read again.
Nothing is ever deleted; old files may be removed between runs.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from samora_monai import __version__
from samora_monai.data.scans import absolute, fingerprint
from samora_monai.errors import InputError, one_line
from samora_monai.replacing import replacing


class CacheError(InputError):
    """An error of the cache, not of a scan."""


@dataclass(frozen=True)
class MemorySlices:
    """Slices `[N, 1, S, S]` of one volume in memory."""

    slices: torch.Tensor

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def nbytes(self) -> int:
        """Memory of the slices in bytes."""
        return self.slices.nbytes

    def keep(self, mask: np.ndarray) -> MemorySlices:
        """Return only the slices where `mask [N]` is true; the memory of the others is freed."""
        return self if mask.all() else MemorySlices(self.slices[torch.from_numpy(mask)])

    def item(self, position: int) -> torch.Tensor:
        """Return a copy of one slice, `[1, S, S]`; float16 becomes float32."""
        one = self.slices[position]
        return one.float() if one.dtype == torch.float16 else one.clone()


class CachedSlices:
    """Slices of one scan in a file, which is mapped into memory for each access.

    No map stays open, because a system allows about 65,000 and there may be more pictures.

    Args:
        file: array file with `[N, 1, S, S]`; a damaged one raises a `CacheError`.
        positions: positions of the kept slices among the N; default: all.
    """

    nbytes = 0  # pages of the system's cache are shared, and released when memory is short

    def __init__(self, file: Path, positions: np.ndarray | None = None) -> None:
        self.file = file
        self.positions = np.arange(len(_map(file))) if positions is None else positions

    def __len__(self) -> int:
        return len(self.positions)

    def keep(self, mask: np.ndarray) -> CachedSlices:
        """Return only the slices where `mask [N]` is true."""
        return CachedSlices(self.file, self.positions[mask])

    def item(self, position: int) -> torch.Tensor:
        """Return a copy of one slice, `[1, S, S]`, float32."""
        return torch.from_numpy(np.array(_map(self.file)[self.positions[position]])).float()


class SliceCache:
    """A folder of cached slices, created if needed. Its methods raise a `CacheError` if it cannot be used.

    Args:
        folder: shared by the processes of a run and by later runs.
        settings: text of all settings that the slices of a scan depend on.
    """

    def __init__(self, folder: str | os.PathLike, settings: str) -> None:
        self.folder = absolute(folder)
        self.settings = f"samora_monai {__version__}: {settings}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(
                f"cannot create cache folder '{self.folder}': {error.strerror}; choose another with --cache_dir"
            ) from error

    def file_of(self, scan: str | os.PathLike) -> Path:
        """Return the file for the slices of `scan` in its present state, or raise a `MissingFileError`."""
        digest = hashlib.sha256(repr((str(absolute(scan)), fingerprint(scan), self.settings)).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.npy"

    def get(self, file: Path) -> tuple[CachedSlices, np.ndarray] | None:
        """Return the slices in `file` and the content `[N]` of each, or `None` if the file does not exist."""
        if not file.is_file():
            return None
        return CachedSlices(file), np.array(_map(_content_of(file)))

    def put(self, file: Path, slices: torch.Tensor, content: np.ndarray) -> CachedSlices:
        """Write slices `[N, 1, S, S]` and their content `[N]`, the slices last and each file atomically."""
        try:
            for target, array in ((_content_of(file), content), (file, slices.numpy())):
                with replacing(target) as unfinished, open(unfinished, "wb") as stream:
                    np.save(stream, array)
        except OSError as error:
            raise CacheError(
                f"cannot write to cache folder '{self.folder}': {error.strerror or error}; "
                "make room, choose another with --cache_dir, or leave it out to keep slices in memory"
            ) from error
        return CachedSlices(file)


def _content_of(file: Path) -> Path:
    return file.with_name(f"{file.stem}_content.npy")


def _map(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CacheError(
            f"cannot read cached slices '{file}': {one_line(error)}; remove the file to create it again"
        ) from error
