"""What the pictures of all three experts have in common: which cases, which of their slices, how they are shown.

Slices reach the network as in training, cut from RAS volumes along Z, and are shown as radiologists look at them.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
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
from torch import Tensor, nn

from samora_monai.data.scans import absolute
from samora_monai.data.slices import CONTENT_ABOVE
from samora_monai.data.unlabeled import SUFFIXES, find_unlabeled
from samora_monai.errors import InputError
from samora_monai.networks import Segmenter
from samora_monai.networks.image_encoder import Block
from samora_monai.networks.segmenter import resize_image

QUARTILES = (0.25, 0.5, 0.75)  # where in a case's content its three slices lie
MIN_CONTENT = 0.05  # a slice with less of it above `CONTENT_ABOVE` tells nothing; the default of training


def find_cases_to_show(dataset_dir: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The scans and pictures at `dataset_dir`, those that a datalist holds out too.

    Returns:
        ``{"image": path, "path": path, "format": name, "case": name}`` each, sorted by path; the case is the path below
        `dataset_dir` without its suffix.

    Raises:
        MissingFileError, InputError: as `find_unlabeled`; two cases have one name.
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


def telling_slices(volume: Tensor) -> list[int]:
    """Slice numbers at 25, 50 and 75 % of a volume's content; fewer where it has fewer slices.

    Args:
        volume: ``[1, X, Y, Z]`` in [0, 1].
    """
    plain = convert_to_tensor(volume, track_meta=False)
    content = (plain[0] > CONTENT_ABOVE).sum((0, 1)) >= MIN_CONTENT * plain[0, ..., 0].numel()  # [Z]
    slices = content.nonzero().flatten().tolist() or list(range(plain.shape[-1]))
    return sorted({slices[round(q * (len(slices) - 1))] for q in QUARTILES})


def extent_of(volume: MetaTensor) -> tuple[float, float]:
    """Width and height in mm of the slices of a RAS volume ``[1, X, Y, Z]``."""
    spacing = volume.pixdim.tolist()
    return spacing[0] * volume.shape[1], spacing[1] * volume.shape[2]


def upright(picture: Tensor | np.ndarray) -> np.ndarray:
    """``[..., X, Y]`` of a RAS volume -> ``[..., H, W]`` with the front on top and the patient's right at the left."""
    return np.asarray(picture)[..., ::-1, ::-1].swapaxes(-1, -2)


class PickSlicesd(MapTransform):
    """Keep the `telling_slices` of a volume; their numbers go to ``"slices"``, width and height to ``"extent"``.

    Args:
        keys: one key of a RAS volume in [0, 1].
        image_size: resize them to this side, as `SliceDataset` does for training.
    """

    def __init__(self, keys: KeysCollection = "image", image_size: int | None = None) -> None:
        super().__init__(keys)
        self.image_size = image_size

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """``[1, X, Y, Z]`` -> a plain tensor ``[1, X, Y, 3]``, or ``[1, S, S, 3]``."""
        d = dict(data)
        key = cast(Hashable, self.first_key(d))
        volume: MetaTensor = d[key]
        d["slices"] = np.array(telling_slices(volume))
        d["extent"] = np.array(extent_of(volume))
        picked = volume.as_tensor()[..., torch.from_numpy(d["slices"])]
        if self.image_size is not None:
            picked = resize_image(picked.movedim(-1, 0), (self.image_size, self.image_size)).movedim(0, -1)
        d[key] = picked
        return d


class PictureLog:
    """Where the pictures go, and a line for each of them: `[3/12] ct_003.nii.gz -> eval/ct_003.png  4.2 s  ...`.

    Args:
        output_dir: folder of the pictures.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = absolute(output_dir)
        self.start()

    def start(self) -> None:
        """The first case begins."""
        self.since = time.monotonic()

    def path_of(self, case: str) -> Path:
        """The picture of a case."""
        return self.output_dir / f"{case}.png"

    def done(self, index: int, count: int, scan: str, case: str, words: str) -> None:
        """A picture is written, and the next case begins."""
        seconds, self.since = time.monotonic() - self.since, time.monotonic()
        print(f"[{index}/{count}] {scan} -> {self.path_of(case)}  {seconds:.1f} s  {words}", flush=True)


class ExpertPictures(ABC):
    """Evaluator handler that draws ``<output_dir>/<case>.png`` as soon as a case is through the network.

    Args:
        output_dir: folder of the pictures.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.log = PictureLog(output_dir)

    def attach(self, engine: Evaluator) -> None:
        """Draw the cases of `engine`, an evaluator that decollates."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    def _started(self, engine: Evaluator) -> None:
        self.log.start()

    def _completed(self, engine: Evaluator) -> None:
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            words = self.draw(self.log.path_of(case["case"]), case, output)
            self.log.done(engine.state.iteration, engine.state.epoch_length, case["path"], case["case"], words)

    @abstractmethod
    def draw(self, path: Path, case: Mapping[str, Any], output: Mapping[str, Any]) -> str:
        """Write the picture of one case.

        Args:
            path: where to.
            case: what the preprocessing left, above all its ``case``, ``slices`` ``[K]`` and ``extent`` ``[2]``.
            output: ``image``, ``label`` and ``pred`` of the evaluator, without the batch's axis.

        Returns:
            what it shows, in words for the terminal.
        """


@contextmanager
def without_experts(segmenter: Segmenter) -> Iterator[None]:
    """The encoder answers as its base alone does, without the experts' deltas, until the block ends."""
    attentions = [cast(Block, block).attn for block in segmenter.image_encoder.blocks]
    experts = [attention.experts for attention in attentions]
    try:
        for attention in attentions:
            attention.experts = nn.ModuleDict()
        yield
    finally:
        for attention, own in zip(attentions, experts, strict=True):
            attention.experts = own
