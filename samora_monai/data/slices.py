"""Training on the slices of volumes: each volume is read once, and its resized slices are kept in memory or on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from monai.data import Dataset
from monai.transforms import Compose
from monai.utils import convert_to_tensor
from tqdm import tqdm

from samora_monai.data.modality import modality_warning
from samora_monai.data.slice_cache import CacheError, SliceCache
from samora_monai.data.slice_reader import CONTENT_ABOVE, SliceReader, VolumeSlices
from samora_monai.errors import InputError, input_error
from samora_monai.settings import flag, is_whole

logger = logging.getLogger(__name__)


class SliceDataset(Dataset):
    """The pooled slices of volumes as items `{"image": [C, S, S], "label": [1, S, S]}` of plain tensors.

    The image has C = 2 * `context` + 1 channels: the slice, which is the middle one, and its neighbours in the volume.

    Images are resized in the slice plane with anti-aliased bilinear interpolation, labels with `nearest-exact`. Slices
    are copied on access, so that no transform can change the stored ones. Logs a warning if the values of every volume
    suggest another modality than `ScaleScand` assumes, and if some labels are empty.

    Args:
        data: `{"image": path}` or `{"image": path, "label": path}` for each volume.
        transform: deterministic transforms that read one item of `data` and return the image `[1, X, Y, Z]` in [0, 1]
            and the label `[1, X, Y, Z]` with integers 0 to 255. If they read no label, items have none.
        slice_transform: random transforms of one item.
        image_size: S, in pixels.
        slice_axis: axis of `[X, Y, Z]` along which volumes are cut, 0 to 2.
        slice_fraction: fraction of the slices of all volumes together to keep, chosen at random, at least one slice;
            0.1 is the papers' "10 % of the slices".
        foreground_only: keep only slices with a labelled pixel; applied before `slice_fraction`.
        seed: seed of the choice of slices.
        min_content: keep only slices with at least this fraction of their pixels above `CONTENT_ABOVE`; applied before
            `slice_fraction`. The others are counted in `num_empty`.
        skip_unreadable: log a scan for which `transform` raises an `InputError`, add its path to `unreadable` and
            continue, instead of raising. Also the text `"true"` or `"false"`.
        half: keep images as float16, half the memory; items are float32 in any case.
        cache_dir: keep the slices of each scan in a file in this folder instead of in memory, and take them from there
            if an earlier run or another process has written them. Only for scans without labels.
        cache_key: required with `cache_dir`: text with every setting of `transform` that changes an image, such as
            `str([modality, window])`. It need not contain the settings of this class, nor the state of the scan.
        context: number of neighbouring slices on each side. They come from the volume, whether they are kept themselves
            or not; the first and the last slice are repeated beyond the ends of the volume.

    Raises:
        InputError: no volumes, none that can be read, no slice left, only empty labels, or a setting out of range.
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
        skip_unreadable: bool | str = False,
        half: bool = False,
        cache_dir: str | os.PathLike | None = None,
        cache_key: str | None = None,
        context: int = 0,
    ) -> None:
        super().__init__(data, slice_transform)
        skip_unreadable = flag(skip_unreadable, "skip_unreadable")
        if not data:
            raise InputError("there are no scans to take slices from; check --dataset_dir and its datalist")
        if not 0 < slice_fraction <= 1:
            raise InputError(f"slice_fraction must be above 0 and at most 1, got {slice_fraction}")
        if not 0 <= min_content <= 1:
            raise InputError(f"min_content must be a part of the pixels from 0 to 1, got {min_content}")
        if not is_whole(context, 0):
            raise InputError(f"context must be a number of neighbouring slices, 0 or more, got {context!r}")
        cache = None
        if cache_dir is not None:
            if not cache_key:
                raise InputError("cache_dir needs a cache_key, text that holds the settings of the scans' transforms")
            if any("label" in item for item in data):
                raise InputError("cache_dir is for scans without labels; leave it out to keep slices in memory")
            cache = SliceCache(cache_dir, repr((cache_key, image_size, slice_axis, half, CONTENT_ABOVE)))
        self.num_slices_total = 0
        self.num_empty = 0
        self._reasons: dict[str, str] = {}  # why a scan could not be read, by its path
        compose = transform if isinstance(transform, Compose) else Compose(transform)
        reader = SliceReader(compose, image_size, slice_axis, half, cache, context)
        self._volumes = self._read(reader, flag(skip_unreadable, "skip_unreadable"), min_content, foreground_only)
        if slice_fraction < 1:
            self._keep_fraction(slice_fraction, seed)
        self._index = [(volume, position) for volume in self._volumes for position in range(len(volume))]
        self._check(min_content)

    def _read(
        self, reader: SliceReader, skip_unreadable: bool, min_content: float, foreground_only: bool
    ) -> list[VolumeSlices]:
        """Read all volumes, and drop unwanted slices at once, so that they take no memory."""
        volumes = []
        for item in tqdm(self.data, desc="reading scans", unit="scan", disable=None):  # no bar unless on a terminal
            try:
                volume = reader(item)
            except Exception as error:  # Compose wraps what a transform raises
                mistake = input_error(error)
                if mistake is None or isinstance(mistake, CacheError) or not skip_unreadable:
                    raise
                self._reasons[str(item["image"])] = str(mistake)
                logger.warning("left out: %s", mistake)
                continue
            kept = volume.content >= min_content
            self.num_slices_total += len(volume)
            self.num_empty += int((~kept).sum())
            if foreground_only:
                if volume.label is None:
                    raise InputError(f"foreground_only needs a label, but '{item['image']}' has none")
                kept &= (volume.label.slices > 0).flatten(1).any(dim=1).numpy()
            volumes.append(volume.keep(kept))
        if not volumes:
            raise InputError(
                f"none of {len(self.data)} scans could be read; the first: {next(iter(self._reasons.values()))}"
            )
        assert len({volume.label is None for volume in volumes}) == 1, "some volumes have a label and others have none"
        return volumes

    def _keep_fraction(self, fraction: float, seed: int) -> None:
        counts = [len(volume) for volume in self._volumes]
        pooled = sum(counts)
        kept = np.zeros(pooled, dtype=bool)
        kept[np.random.default_rng(seed).permutation(pooled)[: max(1, round(fraction * pooled))]] = True
        masks = np.split(kept, np.cumsum(counts)[:-1])
        self._volumes = [volume.keep(mask) for volume, mask in zip(self._volumes, masks, strict=True)]

    def _check(self, min_content: float) -> None:
        """Check that slices are left and that labels mark something, and warn of values of another modality."""
        if not self._index and self.num_empty == self.num_slices_total:
            raise InputError(
                f"each of the {self.num_slices_total} slices has less than {min_content:g} of its pixels above "
                f"{CONTENT_ABOVE}; use a lower --min_content, or check modality and window"
            )
        readable = [item for item in self.data if str(item["image"]) not in self._reasons]
        empty = [item["label"] for item, v in zip(readable, self._volumes, strict=True) if v.has_empty_label]
        if not self._index or len(empty) == self.num_volumes:
            raise InputError(f"none of the {self.num_slices_total} slices has a labelled pixel; check the label files")
        if empty:
            names = ", ".join(f"'{label}'" for label in empty[:3]) + (", ..." if len(empty) > 3 else "")
            logger.warning("%d of %d labels hold only background: %s", len(empty), self.num_volumes, names)
        suggested = {volume.suggested_modality for volume in self._volumes}
        if len(suggested) == 1 and (other := suggested.pop()):
            logger.warning(modality_warning(other, self.num_volumes))

    @property
    def unreadable(self) -> list[str]:
        """Paths of the scans that were left out because they cannot be read."""
        return list(self._reasons)

    @property
    def num_volumes(self) -> int:
        """Number of volumes that were read."""
        return len(self._volumes)

    @property
    def nbytes(self) -> int:
        """Memory of the kept slices in bytes; slices in `cache_dir` count as 0."""
        return sum(volume.nbytes for volume in self._volumes)

    def __len__(self) -> int:
        """Number of slices kept."""
        return len(self._index)

    def _transform(self, index: int):
        volume, position = self._index[index]
        # a slice has no position in the patient, and the metadata would slow down every step of the network
        return convert_to_tensor(self.transform(volume.item(position)), track_meta=False)
