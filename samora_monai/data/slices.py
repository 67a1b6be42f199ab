"""Training on the slices of volumes: each volume is read once, its slices are resized and kept, in memory or on disk.

Keeping the slice axis first is what makes slices cheap: out of MONAI's `[C, X, Y, Z]` layout, where Z runs fastest, a
512 x 512 slice is an 11 ms strided copy; here it is a contiguous block (measured on one core).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import Dataset, MetaTensor
from monai.transforms import Compose
from monai.utils import convert_to_tensor
from tqdm import tqdm

from samora_monai.data.slice_cache import CachedSlices, CacheError, MemorySlices, SliceCache
from samora_monai.errors import InputError, input_error

CONTENT_ABOVE = 0.1  # a pixel above this, of [0, 1], is not background


class SliceDataset(Dataset):
    """The pooled slices of some volumes as items `{"image": [1, S, S], "label": [1, S, S]}` of plain tensors.

    Images are resized in the slice plane with anti-aliased bilinear interpolation, labels with `nearest-exact`. Slices
    are copied on access, so that no transform can change the stored ones. Random transforms follow MONAI's rules:
    `set_determinism` or the loader's generator makes them reproducible, and each worker of `monai.data.DataLoader`
    gets a seed of its own.

    Args:
        data: `{"image": path}` or `{"image": path, "label": path}` per volume.
        transform: deterministic transforms of a volume: they read one item of `data` and end with the image
            `[1, X, Y, Z]` in [0, 1] and the label `[1, X, Y, Z]` with integers 0 to 255. If they read no label, items
            have none.
        slice_transform: random transforms of one item.
        image_size: S, in pixels.
        slice_axis: the axis of `[X, Y, Z]` that is cut; the default is Z.
        slice_fraction: part of the slices of all volumes together that is kept, chosen at random, at least one slice;
            0.1 is the papers' "10 % of the slices".
        foreground_only: keep only slices with a labelled pixel, before `slice_fraction` is taken.
        seed: seed of that choice.
        min_content: leave out nearly empty slices, before `slice_fraction` is taken: those of which a smaller part of
            the pixels than this is above `CONTENT_ABOVE`. They are counted in `num_empty`.
        skip_unreadable: what to do with an item for which `transform` raises an `InputError`: leave it out, print the
            reason in one line and note its path in `unreadable`, or raise.
        half: keep images as float16, half the memory; items are float32 all the same.
        cache_dir: keep the slices of each scan in a file in this folder instead of in memory, and take them from there
            if an earlier run or another process put them there. Only for scans without labels.
        cache_key: needed with `cache_dir`: text that holds every setting of `transform` which changes an image, as
            `str([modality, window])`. The path, size and time of the scan, `image_size`, `slice_axis`, `half` and the
            version of this package are taken into account without it.

    Raises:
        InputError: no volumes, none that can be read, no slice left, or a setting out of range.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, str]],
        transform: Sequence[Callable] | Callable,
        slice_transform: Sequence[Callable] | Callable | None = None,
        image_size: int = 224,
        slice_axis: int = 2,
        slice_fraction: float = 1.0,
        foreground_only: bool = False,
        seed: int = 0,
        min_content: float = 0.0,
        skip_unreadable: bool = False,
        half: bool = False,
        cache_dir: str | os.PathLike | None = None,
        cache_key: str | None = None,
    ) -> None:
        super().__init__(data, slice_transform)
        if not data:
            raise InputError("there are no scans to take slices from; check --dataset_dir and its datalist")
        if not 0 < slice_fraction <= 1:
            raise InputError(f"slice_fraction must be above 0 and at most 1, got {slice_fraction}")
        if not 0 <= min_content <= 1:
            raise InputError(f"min_content must be a part of the pixels from 0 to 1, got {min_content}")
        cache = None
        if cache_dir is not None:
            if not cache_key:
                raise InputError("cache_dir needs a cache_key, text that holds the settings of the scans' transforms")
            if any("label" in item for item in data):
                raise InputError("cache_dir is for scans without labels; leave it out to keep slices in memory")
            cache = SliceCache(cache_dir, repr((cache_key, image_size, slice_axis, half, CONTENT_ABOVE)))
        self._load = transform if isinstance(transform, Compose) else Compose(transform)
        self._cut = {"slice_axis": slice_axis, "size": image_size}
        self._half = half
        self.num_slices_total = 0
        self.num_empty = 0
        self.unreadable: list[str] = []
        self._images: list[MemorySlices | CachedSlices] = []  # per volume [N, 1, S, S], in [0, 1]
        self._labels: list[MemorySlices] = []  # per volume [N, 1, S, S], uint8; empty without labels
        reason = ""
        for item in tqdm(data, desc="reading scans", unit="scan", disable=None):  # no bar unless on a terminal
            try:
                image, label, content = self._read(item, cache)
            except Exception as error:  # Compose wraps what a transform raises
                mistake = input_error(error)
                if mistake is None or isinstance(mistake, CacheError) or not skip_unreadable:
                    raise
                reason = reason or str(mistake)
                self.unreadable.append(str(item["image"]))
                tqdm.write(f"left out: {mistake}")
                continue
            self.num_slices_total += len(image)
            kept = content >= min_content
            self.num_empty += int((~kept).sum())
            if foreground_only:
                if label is None:
                    raise InputError(f"foreground_only needs a label, but '{item['image']}' has none")
                kept &= (label.slices > 0).flatten(1).any(dim=1).numpy()
            self._images.append(image.keep(kept))
            if label is not None:
                self._labels.append(label.keep(kept))
        if not self._images:
            raise InputError(f"none of {len(data)} scans could be read; the first: {reason}")
        assert len(self._labels) in (0, len(self._images)), "some volumes have a label and others have none"
        if slice_fraction < 1:
            self._keep_fraction(slice_fraction, seed)
        self._index = [(v, s) for v, image in enumerate(self._images) for s in range(len(image))]
        if not self._index and self.num_empty == self.num_slices_total:
            raise InputError(
                f"each of the {self.num_slices_total} slices has less than {min_content:g} of its pixels above "
                f"{CONTENT_ABOVE}; use a lower --min_content, or check modality and window"
            )
        if not self._index:
            raise InputError(f"none of the {self.num_slices_total} slices has a labelled pixel; check the label files")

    def _read(
        self, item: Mapping[str, Any], cache: SliceCache | None
    ) -> tuple[MemorySlices | CachedSlices, MemorySlices | None, np.ndarray]:
        """The slices of one volume, their labels if it has any, and the part `[N]` of each slice that has content."""
        file = cache.file_of(item["image"]) if cache else None
        if cache and file and (known := cache.get(file)):
            return known[0], None, known[1]
        volume = self._load(dict(item))
        image = _to_slices(volume["image"], label=False, **self._cut)
        content = (image > CONTENT_ABOVE).flatten(1).float().mean(dim=1).numpy()
        image = image.half() if self._half else image
        if cache and file:
            return cache.put(file, image, content), None, content
        label = None  # a path that `transform` did not read is no label
        if isinstance(volume.get("label"), torch.Tensor):
            label = MemorySlices(_to_slices(volume["label"], label=True, **self._cut))
        return MemorySlices(image), label, content

    def _keep_fraction(self, fraction: float, seed: int) -> None:
        counts = [len(image) for image in self._images]
        pooled = sum(counts)
        kept = np.zeros(pooled, dtype=bool)
        kept[np.random.default_rng(seed).permutation(pooled)[: max(1, round(fraction * pooled))]] = True
        masks = np.split(kept, np.cumsum(counts)[:-1])
        self._images = [image.keep(mask) for image, mask in zip(self._images, masks, strict=True)]
        if self._labels:
            self._labels = [label.keep(mask) for label, mask in zip(self._labels, masks, strict=True)]

    @property
    def num_volumes(self) -> int:
        """Number of volumes that were read."""
        return len(self._images)

    @property
    def nbytes(self) -> int:
        """Memory that the kept slices take, in bytes; nothing for those in `cache_dir`."""
        return sum(slices.nbytes for slices in [*self._images, *self._labels])

    def __len__(self) -> int:
        """Number of slices kept."""
        return len(self._index)

    def _transform(self, index: int):
        volume, position = self._index[index]
        item = {"image": self._images[volume].item(position)}
        if self._labels:
            item["label"] = self._labels[volume].item(position)
        # a slice has no place in the patient, and the network's every step would carry the metadata along
        return convert_to_tensor(self.transform(item), track_meta=False)


def _to_slices(volume: torch.Tensor, slice_axis: int, size: int, label: bool) -> torch.Tensor:
    """`[1, X, Y, Z]` -> `[slices, 1, size, size]`, contiguous."""
    plain = volume.as_tensor() if isinstance(volume, MetaTensor) else torch.as_tensor(volume)
    assert plain.ndim == 4, f"expected [1, X, Y, Z], got {plain.shape}"
    slices = plain.to(torch.uint8 if label else torch.float32).movedim(slice_axis + 1, 0)
    if slices.shape[-2:] != (size, size):
        if label:
            slices = F.interpolate(slices, size=(size, size), mode="nearest-exact")
        else:
            slices = F.interpolate(slices, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return slices.contiguous()
