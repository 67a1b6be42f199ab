"""Common parts of the pictures of the three experts: the cases, their slices, orientation, log lines.

The network takes slices as in training, cut from RAS volumes along Z; pictures are in radiological orientation.
"""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Events
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.engines import Evaluator
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor
from torch import Tensor

from samora_monai.data.scans import absolute
from samora_monai.data.slice_reader import CONTENT_ABOVE, SLICE_CONTENT
from samora_monai.data.unlabeled import SUFFIXES, find_unlabeled
from samora_monai.errors import InputError
from samora_monai.networks.framing import resize_image
from samora_monai.pictures.panels import Panel, save_panels

logger = logging.getLogger(__name__)

QUARTILES = (0.25, 0.5, 0.75)  # positions of the three slices of a case among those with content
MIN_CONTENT = 0.05  # smallest part of a slice above `CONTENT_ABOVE`; the default of training


def find_cases_to_show(dataset_dir: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Find all scans and pictures in `dataset_dir`, including those that a datalist holds out.

    Returns:
        `{"image": path, "path": path, "format": name, "case": name}` each, sorted by path; the case is the path below
        `dataset_dir` without suffix.

    Raises:
        MissingFileError, InputError: as `find_unlabeled`; two cases have the same name.
    """
    root = absolute(dataset_dir)
    found = find_unlabeled(root, validation_fraction=0)
    named: dict[str, dict[str, str]] = {}
    for item in sorted(found.training + found.validation, key=lambda item: item["image"]):
        path = Path(item["image"])
        inside = root.is_dir() and path != root and path.is_relative_to(root)
        name = str(path.relative_to(root)) if inside else path.name
        name = name[: -len(next((s for s in SUFFIXES if name.lower().endswith(s)), ""))] or name
        if other := named.get(name):
            raise InputError(f"pictures of '{other['image']}' and '{path}' would get one name; rename or move one")
        named[name] = {**item, "path": str(path), "case": name}
    return list(named.values())


def content_slices(volume: Tensor) -> list[int]:
    """Slice numbers at 25, 50 and 75 % of the slices of a volume that have content; fewer if it has fewer slices.

    Args:
        volume: `[1, X, Y, Z]` in [0, 1]; with `SLICE_CONTENT` in its metadata if z-scores made it.
    """
    plain = convert_to_tensor(volume, track_meta=False)
    if isinstance(volume, MetaTensor) and SLICE_CONTENT in volume.meta:
        content = torch.as_tensor(volume.meta[SLICE_CONTENT]) >= MIN_CONTENT  # [Z]
    else:
        content = (plain[0] > CONTENT_ABOVE).sum((0, 1)) >= MIN_CONTENT * plain[0, ..., 0].numel()
    slices = content.nonzero().flatten().tolist() or list(range(plain.shape[-1]))
    return sorted({slices[round(q * (len(slices) - 1))] for q in QUARTILES})


def extent_of(volume: MetaTensor) -> tuple[float, float]:
    """Width and height, in mm, of the slices of a RAS volume `[1, X, Y, Z]`."""
    spacing = volume.pixdim.tolist()
    return spacing[0] * volume.shape[1], spacing[1] * volume.shape[2]


def upright(picture: Tensor | np.ndarray) -> np.ndarray:
    """`[..., X, Y]` of a RAS volume -> `[..., H, W]` with anterior at the top and the patient's right on the left."""
    return np.asarray(picture)[..., ::-1, ::-1].swapaxes(-1, -2)


class PickSlicesd(MapTransform):
    """Keep the `content_slices` of a volume; store their numbers as `"slices"`, and width and height as `"extent"`.

    Args:
        keys: key of a RAS volume in [0, 1].
        image_size: side that slices are resized to, as `SliceDataset` does for training.
    """

    def __init__(self, keys: KeysCollection = "image", image_size: int | None = None) -> None:
        super().__init__(keys)
        self.image_size = image_size

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """`[1, X, Y, Z]` -> a plain tensor `[1, X, Y, 3]`, or `[1, S, S, 3]`."""
        d = dict(data)
        key = cast(Hashable, self.first_key(d))
        volume: MetaTensor = d[key]
        d["slices"] = np.array(content_slices(volume))
        d["extent"] = np.array(extent_of(volume))
        picked = volume.as_tensor()[..., torch.from_numpy(d["slices"])]
        if self.image_size is not None:
            picked = resize_image(picked.movedim(-1, 0), (self.image_size, self.image_size)).movedim(0, -1)
        d[key] = picked
        return d


class ExpertPictures(ABC):
    """Evaluator handler that draws `<output_dir>/<case>.png` for each case.

    Args:
        output_dir: folder of the pictures.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = absolute(output_dir)

    def attach(self, engine: Evaluator) -> None:
        """Draw the cases of `engine`, an evaluator that decollates."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    def start(self, engine: Evaluator) -> None:
        """Start the clock and the count of the pictures."""
        self.since, self.drawn, self.count = time.monotonic(), 0, engine.state.epoch_length

    def _completed(self, engine: Evaluator) -> None:
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.draw(case, output)

    @abstractmethod
    def draw(self, case: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Draw one case, or keep it for the end of the epoch.

        Args:
            case: the preprocessed item: `case`, `path`, and, of `PickSlicesd`, `slices` `[K]` and `extent` `[2]`.
            output: `image`, `label` and `pred` of the evaluator, without the batch axis.
        """

    def save(self, case: str, scan: str, rows: Sequence[Sequence[Panel]], title: str, result: str) -> None:
        """Write the picture of a case and log `[3/12] ct_003.nii.gz -> eval/ct_003.png  4.2 s  RESULT`."""
        path = self.output_dir / f"{case}.png"
        save_panels(path, rows, f"{case}: {title}")
        self.drawn += 1
        seconds, self.since = time.monotonic() - self.since, time.monotonic()
        logger.info(f"[{self.drawn}/{self.count}] {scan} -> {path}  {seconds:.1f} s  {result}")
