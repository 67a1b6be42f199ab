"""Interactive models for MONAI Label: SAM or SAM 2 with prompts, on the base that the served model was trained from.

`samora_click` segments the slice that was clicked, `samora_click_3d` every slice with points and those between and
beside them. Both are of the type `deepgrow`, for which 3D Slicer and OHIF show their tools for points.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from clicks_request import prompts_of
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.transform.writer import Writer

from samora_monai.checkpoints import load_adapter, load_sam
from samora_monai.data import CheckCased, LoadCased, ScaleScand, ScanScaling
from samora_monai.data.modality import suggested_modality
from samora_monai.download import CHECKPOINTS, SHIPPED, STAND_IN
from samora_monai.errors import InputError
from samora_monai.inference.clicks import PromptedSegmenter, with_draft
from samora_monai.networks import build_segmenter
from samora_monai.pipeline.at_hand import Base

NAME, NAME_3D = "samora_click", "samora_click_3d"
PROMPTS_FILE = SHIPPED / "tiny_prompts.pt"  # see samora_monai/weights/README.md
SIZES = {STAND_IN: 192}  # sides of the network's input; SAM needs that of its training, SAM 2 does well with half of it
SIZE_SAM, SIZE_SAM2 = 1024, 512
REACH = (5, 0, 2, 10, 20, 1000)  # slices beyond those with prompts; the first is the default
SCANS = 2  # kept in memory

logger = logging.getLogger("samora_clicks")


class Promptable:
    """SAM or SAM 2 with its prompt encoder and decoder, loaded at the first click.

    Raises:
        InputError: the base has no weights for prompts.
    """

    def __init__(self, base: Base) -> None:
        if base.encoder not in (*CHECKPOINTS, STAND_IN) or (base.encoder == STAND_IN and not PROMPTS_FILE.is_file()):
            raise InputError(f"the base {base.encoder} was trained without prompts; use SAM, SAM 2 or {STAND_IN}")
        self.base = base

    @cached_property
    def segmenter(self) -> PromptedSegmenter:
        encoder = self.base.encoder
        size = SIZES.get(encoder, SIZE_SAM2 if encoder.startswith("sam2") else SIZE_SAM)
        net = build_segmenter(encoder, size, num_classes=4, experts=())
        load_sam(net, self.base.checkpoint)
        if encoder == STAND_IN:
            load_adapter(net, PROMPTS_FILE)  # refuses a base that is not the shipped one
        logger.info("clicks: %s, %s (%s)", encoder, self.base.checkpoint, self.base.reason)
        return PromptedSegmenter(net.eval())


@dataclass(frozen=True)
class Scan:
    """A scan as read: grey values `[X, Y, Z]` in [0, 1], on the grid of its file."""

    volume: np.ndarray
    affine: np.ndarray
    axis: int  # of the slices

    def slices_last(self, volume: np.ndarray) -> np.ndarray:
        return np.moveaxis(volume, self.axis, -1)


class Scans:
    """The scans of the last requests.

    Args:
        scaling: of the served model; None takes MR's percentiles, or CT's window for values below -500.
    """

    def __init__(self, scaling: ScanScaling | None) -> None:
        self.scaling = scaling
        self._read = Compose([LoadCased("image"), EnsureChannelFirstd("image"), CheckCased("image")])
        self._kept: OrderedDict[tuple[str, int, int], Scan] = OrderedDict()

    def __call__(self, path: str) -> tuple[tuple[str, int, int], Scan]:
        """The scan, and a key that changes with its file."""
        stat = os.stat(path) if os.path.exists(path) else None
        key = (path, stat.st_mtime_ns if stat else 0, stat.st_size if stat else 0)
        if key not in self._kept:
            image = self._read({"image": path})["image"]
            self._kept[key] = Scan(self._scaled(image), image.affine.numpy(), self._axis(image))
            while len(self._kept) > SCANS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return key, self._kept[key]

    def _scaled(self, image: MetaTensor) -> np.ndarray:
        scaling = self.scaling
        if scaling is None:
            scaling = ScanScaling(suggested_modality("MR", float(image.min())) or "MR")
        return ScaleScand("image", scaling)({"image": image.as_tensor()})["image"][0].float().numpy()

    def _axis(self, image: MetaTensor) -> int:
        """The axis nearest to the model's slice axis; without a model that of the largest spacing, else the last."""
        columns = np.abs(image.affine.numpy()[:3, :3])
        if self.scaling is not None:
            return int((columns / columns.sum(0))[self.scaling.slice_axis].argmax())
        spacing = image.pixdim.numpy()
        return int(spacing.argmax()) if spacing.max() > 1.05 * spacing[-1] else 2


class ClickTask(InferTask):
    """One of the interactive models.

    Args:
        promptable, scans, lock: shared by both models.
        labels: names of the objects that the viewers offer, with their values in stored labels.
        one_slice: segment a single slice.
    """

    def __init__(
        self, promptable: Promptable, scans: Scans, lock: threading.Lock, labels: dict[str, int], one_slice: bool
    ) -> None:
        where = "a slice" if one_slice else "slices, from those with points to their neighbours"
        super().__init__(
            type=InferType.DEEPGROW,
            labels=labels,
            dimension=2 if one_slice else 3,
            description=f"Points or a box segment an object in {where}, by the base of SAMora",
            config={"start_from": ["none", "original", "final"]} | ({} if one_slice else {"reach": list(REACH)}),
        )
        self.promptable, self.scans, self.lock, self.one_slice = promptable, scans, lock, one_slice

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Segment one object: the file of the label, 1 inside, on the grid of the image; and names and times."""
        began = time.monotonic()
        with self.lock:  # the network and both memories are not made for several threads
            key, scan = self.scans(request["image"])
            prompts, box_slices = prompts_of(request, scan.volume.shape, scan.axis, self.one_slice)
            if draft := request.get("draft"):
                prompts = with_draft(prompts, scan.slices_last(self._draft(draft, request, scan)))
            reach = 0 if self.one_slice else _reach(request.get("reach"))
            if box_slices is not None and not self.one_slice:
                reach = box_slices
            found = self.promptable.segmenter.segment(scan.slices_last(scan.volume), prompts, key, reach)
        label = np.ascontiguousarray(np.moveaxis(found, -1, scan.axis))
        inferred = time.monotonic()
        data = {"result_dtype": "uint8", **request, "image_path": request["image"], "pred": label}
        data["image"] = MetaTensor(torch.empty(0), affine=torch.as_tensor(scan.affine))
        file, result = Writer(ref_image="image")(data)
        times = {"infer": round(inferred - began, 3), "write": round(time.monotonic() - inferred, 3)}
        return file, {**result, "label_names": {str(request.get("label") or "object"): 1}, "latencies": times}

    def _draft(self, file: str, request: dict[str, Any], scan: Scan) -> np.ndarray:
        """The object in a label file: the voxels of the requested label if it is known by value, else all but 0."""
        values = LoadCased("label")({"label": file})["label"].numpy().squeeze()
        if values.shape != scan.volume.shape:
            raise InputError(f"the stored label is {list(values.shape)}, but the image {list(scan.volume.shape)}")
        value = dict(self.labels).get(str(request.get("label")).lower())
        return values > 0 if value is None else values == value


def _reach(given: Any) -> int:
    value = given[0] if isinstance(given, list | tuple) and given else REACH[0] if given is None else given
    try:
        reach = int(value)
    except (TypeError, ValueError):
        reach = -1
    if reach < 0:
        raise InputError(f"reach must be a number of slices, 0 or more, got {str(given)[:80]}")
    return reach
