"""Reading one volume as slices: load, cut along one axis, resize.

The slice axis is kept first, so that a slice is a contiguous block. In MONAI's `[C, X, Y, Z]` layout, where Z runs
fastest, a 512 x 512 slice is an 11 ms strided copy (measured on one core).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Compose

from samora_monai.data.modality import SUGGESTED_MODALITY
from samora_monai.data.slice_cache import CachedSlices, MemorySlices, SliceCache

CONTENT_ABOVE = 0.1  # of [0, 1]; darker pixels are taken for air
SLICE_CONTENT = "slice_content"  # key in the metadata of a scan whose scaled values do not show what is air


@dataclass(frozen=True)
class VolumeSlices:
    """N slices of one volume, and those that are only neighbours of one of them."""

    image: MemorySlices | CachedSlices  # [M, 1, S, S] in [0, 1], M >= N
    label: MemorySlices | None  # [N, 1, S, S], uint8
    content: np.ndarray  # [N], fraction of the pixels of each slice that are above CONTENT_ABOVE
    channels: np.ndarray  # [N, C], positions in `image` of the channels of each slice
    suggested_modality: str | None = None  # by the values, if it is not the one of the settings
    has_empty_label: bool = False  # whether there is a label whose voxels are all background

    def __len__(self) -> int:
        return len(self.channels)

    @property
    def nbytes(self) -> int:
        """Memory of the slices in bytes."""
        return self.image.nbytes + (self.label.nbytes if self.label else 0)

    def keep(self, mask: np.ndarray) -> VolumeSlices:
        """Return only the slices where `mask [N]` is true; the memory of what none of them needs is freed."""
        label = self.label.keep(mask) if self.label else None
        needed, channels = np.unique(self.channels[mask], return_inverse=True)
        image = self.image.keep(np.isin(np.arange(len(self.image)), needed))
        channels = channels.reshape(-1, self.channels.shape[1])
        return replace(self, image=image, label=label, content=self.content[mask], channels=channels)

    def item(self, position: int) -> dict[str, torch.Tensor]:
        """Return a copy of one slice, `{"image": [C, S, S]}`, with `"label"` `[1, S, S]` if there is one."""
        item = {"image": torch.cat([self.image.item(channel) for channel in self.channels[position]])}
        return item if self.label is None else item | {"label": self.label.item(position)}


def neighbours(count: int, context: int) -> np.ndarray:
    """Positions of each slice of a volume and of `context` slices on each side, `[count, 2 * context + 1]`.

    The first and the last slice are repeated beyond the ends of the volume.
    """
    return (np.arange(count)[:, None] + np.arange(-context, context + 1)).clip(0, count - 1)


@dataclass(frozen=True)
class SliceReader:
    """Read a volume as slices, from its file or from a cache, which holds each slice once for any context.

    Args:
        transform, image_size, slice_axis, half, context: as in `SliceDataset`.
        cache: where slices of volumes without labels are kept; `None`: nowhere.
    """

    transform: Compose
    image_size: int
    slice_axis: int
    half: bool
    cache: SliceCache | None
    context: int = 0

    def __call__(self, item: Mapping[str, Any]) -> VolumeSlices:
        """Read the volume of one item of `SliceDataset.data`."""
        if self.cache is None:
            return self._read(item)
        file = self.cache.file_of(item["image"])
        if cached := self.cache.get(file):
            return VolumeSlices(cached[0], None, cached[1], neighbours(len(cached[1]), self.context))
        volume = self._read(item)
        assert isinstance(volume.image, MemorySlices)
        return replace(volume, image=self.cache.put(file, volume.image.slices, volume.content))

    def _read(self, item: Mapping[str, Any]) -> VolumeSlices:
        volume = self.transform(dict(item))
        image, label = volume["image"], volume.get("label")
        slices = self._cut(image, torch.float32, mode="bilinear", align_corners=False, antialias=True)
        has_label = isinstance(label, torch.Tensor)  # else it is a path that `transform` did not read
        meta = image.meta if isinstance(image, MetaTensor) else {}
        content = (slices > CONTENT_ABOVE).flatten(1).float().mean(dim=1).numpy()
        return VolumeSlices(
            image=MemorySlices(slices.half() if self.half else slices),
            label=MemorySlices(self._cut(label, torch.uint8, mode="nearest-exact")) if has_label else None,
            content=np.array(meta.get(SLICE_CONTENT, content), np.float32),
            channels=neighbours(len(slices), self.context),
            suggested_modality=meta.get(SUGGESTED_MODALITY),
            has_empty_label=has_label and not bool(label.any()),
        )

    def _cut(self, volume: torch.Tensor, dtype: torch.dtype, **interpolation: Any) -> torch.Tensor:
        """`[1, X, Y, Z]` -> `[N, 1, S, S]`, contiguous."""
        plain = volume.as_tensor() if isinstance(volume, MetaTensor) else torch.as_tensor(volume)
        assert plain.ndim == 4, f"expected [1, X, Y, Z], got {plain.shape}"
        slices = plain.to(dtype).movedim(self.slice_axis + 1, 0)
        size = (self.image_size, self.image_size)
        if slices.shape[-2:] != size:
            slices = F.interpolate(slices, size=size, **interpolation)
        return slices.contiguous()
