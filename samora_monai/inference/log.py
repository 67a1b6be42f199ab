"""One line for every case that inference has finished."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import Evaluator
from monai.utils import CommonKeys, MetaKeys

from samora_monai.inference.folder import ReadableScans


class InferenceLog:
    """Evaluator handler that prints `[3/12] liver.nii.gz -> eval/liver_seg.nii.gz  80 slices, 4.2 s  liver 1.41 l`.

    Works on the output of a postprocessing that ends with :class:`samora_monai.data.SaveLabeld`.

    Args:
        class_names: names of the classes, background first; each one found is printed with its volume.
        scans: what the engine's data come from, which knows how far it is.
    """

    def __init__(self, class_names: Sequence[str], scans: ReadableScans) -> None:
        self.class_names = class_names
        self.scans = scans

    def attach(self, engine: Evaluator) -> None:
        """Print the cases of `engine`, the evaluator."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)
        self.start = time.monotonic()

    def _started(self, engine: Evaluator) -> None:
        if engine.state.iteration == 1:
            self.start = time.monotonic()

    def _completed(self, engine: Evaluator) -> None:
        for item in engine.state.output:
            pred: MetaTensor = item[CommonKeys.PRED]
            millilitres = abs(torch.det(pred.affine[:3, :3]).item()) / 1000
            counts = torch.bincount(pred.as_tensor().flatten().long(), minlength=len(self.class_names))
            found = [
                f"{name} {count * millilitres:.1f} ml"
                for name, count in zip(self.class_names[1:], counts[1:].tolist(), strict=True)
                if count
            ]
            seconds, self.start = time.monotonic() - self.start, time.monotonic()
            print(
                f"[{self.scans.taken}/{self.scans.total}] {pred.meta['filename_or_obj']} -> "
                f"{pred.meta[MetaKeys.SAVED_TO]}  {seconds:.1f} s  {', '.join(found) or 'nothing found'}",
                flush=True,
            )
