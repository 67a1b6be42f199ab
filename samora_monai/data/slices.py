"""Training on the slices of volumes: each volume is read once, its slices are resized and kept in memory.

Keeping the slice axis first is what makes slices cheap: out of MONAI's `[C, X, Y, Z]` layout, where Z runs fastest, a
512 x 512 slice is an 11 ms strided copy; here it is a contiguous block (measured on one core).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import Dataset, MetaTensor
from monai.transforms import Compose
from monai.utils import convert_to_tensor
from tqdm import tqdm

from samora_monai.errors import InputError


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
        slice_axis: the axis of `[1, X, Y, Z]` that is cut; the default is Z.
        slice_fraction: part of the slices of all volumes together that is kept, chosen at random, at least one slice;
            0.1 is the papers' "10 % of the slices".
        foreground_only: keep only slices with a labelled pixel, before `slice_fraction` is taken.
        seed: seed of that choice.

    Raises:
        InputError: no volumes, no slice left, or `slice_fraction` not in (0, 1].
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, str]],
        transform: Sequence[Callable] | Callable,
        slice_transform: Sequence[Callable] | Callable | None = None,
        image_size: int = 224,
        slice_axis: int = -1,
        slice_fraction: float = 1.0,
        foreground_only: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(data, slice_transform)
        if not data:
            raise InputError("there are no scans to take slices from; check --dataset_dir and its datalist")
        if not 0 < slice_fraction <= 1:
            raise InputError(f"slice_fraction must be above 0 and at most 1, got {slice_fraction}")
        load = transform if isinstance(transform, Compose) else Compose(transform)
        self.num_slices_total = 0
        self._images: list[torch.Tensor] = []  # per volume [N, 1, S, S], float32 in [0, 1]
        self._labels: list[torch.Tensor] = []  # per volume [N, 1, S, S], uint8; empty without labels
        for item in tqdm(data, desc="reading scans", unit="scan", disable=None):  # no bar unless on a terminal
            volume = load(dict(item))
            image = _to_slices(volume["image"], slice_axis, image_size, label=False)
            self.num_slices_total += len(image)
            label = None  # a path that `transform` did not read is no label
            if isinstance(volume.get("label"), torch.Tensor):
                label = _to_slices(volume["label"], slice_axis, image_size, label=True)
            if foreground_only:
                if label is None:
                    raise InputError(f"foreground_only needs a label, but '{item['image']}' has none")
                kept = (label > 0).flatten(1).any(dim=1)
                image, label = image[kept], label[kept]
            self._images.append(image)
            if label is not None:
                self._labels.append(label)
        assert len(self._labels) in (0, len(data)), "some volumes have a label and others have none"
        if slice_fraction < 1:
            self._keep_fraction(slice_fraction, seed)
        self._index = [(v, s) for v, image in enumerate(self._images) for s in range(len(image))]
        if not self._index:
            raise InputError(f"none of the {self.num_slices_total} slices has a labelled pixel; check the label files")

    def _keep_fraction(self, fraction: float, seed: int) -> None:
        counts = [len(image) for image in self._images]
        pooled = sum(counts)
        kept = np.zeros(pooled, dtype=bool)
        kept[np.random.default_rng(seed).permutation(pooled)[: max(1, round(fraction * pooled))]] = True
        masks = [torch.from_numpy(mask) for mask in np.split(kept, np.cumsum(counts)[:-1])]
        self._images = [image[mask] for image, mask in zip(self._images, masks, strict=True)]
        if self._labels:
            self._labels = [label[mask] for label, mask in zip(self._labels, masks, strict=True)]

    @property
    def num_volumes(self) -> int:
        """Number of volumes that were read."""
        return len(self._images)

    @property
    def nbytes(self) -> int:
        """Memory that the kept slices take, in bytes."""
        return sum(slices.nbytes for slices in self._images + self._labels)

    def __len__(self) -> int:
        """Number of slices kept."""
        return len(self._index)

    def _transform(self, index: int):
        volume, position = self._index[index]
        item = {"image": self._images[volume][position].clone()}
        if self._labels:
            item["label"] = self._labels[volume][position].clone()
        # a slice has no place in the patient, and the network's every step would carry the metadata along
        return convert_to_tensor(self.transform(item), track_meta=False)


def _to_slices(volume: torch.Tensor, slice_axis: int, size: int, label: bool) -> torch.Tensor:
    """`[1, X, Y, Z]` -> `[slices, 1, size, size]`, contiguous."""
    plain = volume.as_tensor() if isinstance(volume, MetaTensor) else torch.as_tensor(volume)
    assert plain.ndim == 4 and slice_axis % 4 != 0, f"expected [1, X, Y, Z] cut along a spatial axis, got {plain.shape}"
    slices = plain.to(torch.uint8 if label else torch.float32).movedim(slice_axis, 0)
    if slices.shape[-2:] != (size, size):
        if label:
            slices = F.interpolate(slices, size=(size, size), mode="nearest-exact")
        else:
            slices = F.interpolate(slices, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return slices.contiguous()
