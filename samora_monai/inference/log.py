"""One line for every case that inference has finished."""

from __future__ import annotations

import logging
import math
import time

import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import Evaluator, IterationEvents
from monai.utils import CommonKeys, MetaKeys

from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.inference.folder import ReadableScans
from samora_monai.inference.uncertainty import ENTROPY

logger = logging.getLogger(__name__)


class InferenceLog:
    """Evaluator handler that logs each case, with the `FoundEntropy` of its prediction.

    `[3/12] data/ct.nii.gz -> eval/ct_seg.nii.gz  80 slices, 4.2 s  liver 1410.3 ml, entropy 0.31`

    The inferer is a `SliceLabelInferer` on one scan at a time, and the postprocessing must end with
    `samora_monai.data.SaveLabeld`.

    Args:
        model: settings of the model: the names of the classes, and the axis that is cut into slices.
        scans: the data of the engine, which counts the scans.
    """

    def __init__(self, model: ModelSettings, scans: ReadableScans) -> None:
        self.model = model
        self.scans = scans
        self.start = 0.0
        self.entropy = math.nan

    def attach(self, engine: Evaluator) -> None:
        """Log the cases of `engine`."""
        engine.add_event_handler(Events.ITERATION_STARTED(once=1), self._started)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._predicted)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    def _started(self, engine: Evaluator) -> None:
        self.start = time.monotonic()

    def _predicted(self, engine: Evaluator) -> None:
        # before the postprocessing, which drops what the inferer adds to the metadata
        self.entropy = float(engine.state.output[CommonKeys.PRED].meta[ENTROPY])

    def _completed(self, engine: Evaluator) -> None:
        names = self.model.class_names
        for item in engine.state.output:
            pred: MetaTensor = item[CommonKeys.PRED]
            millilitres = abs(torch.det(pred.affine[:3, :3]).item()) / 1000  # of a voxel
            counts = torch.bincount(pred.as_tensor().flatten().long(), minlength=len(names)).tolist()
            found = [(name, count) for name, count in zip(names[1:], counts[1:], strict=True) if count]
            volumes = ", ".join(f"{name} {count * millilitres:.1f} ml" for name, count in found)
            about = f"{volumes}, entropy {self.entropy:.2f}" if volumes else "nothing found"
            slices = item[CommonKeys.IMAGE].shape[1 + self.model.scaling.slice_axis]  # [C, X, Y, Z] in RAS
            seconds, self.start = time.monotonic() - self.start, time.monotonic()
            logger.info(
                f"[{self.scans.taken}/{self.scans.total}] {pred.meta['filename_or_obj']} -> "
                f"{pred.meta[MetaKeys.SAVED_TO]}  {slices} slices, {seconds:.1f} s  {about}"
            )
