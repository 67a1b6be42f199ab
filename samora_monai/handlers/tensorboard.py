"""TensorBoard: one event file for a run, and the overlay of a validation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ignite.distributed as idist
from ignite.engine import Events
from monai.engines import Evaluator
from monai.utils import CommonKeys as Keys


@dataclass(eq=False)
class TensorBoard:
    """The event file of a run in the folder `log_dir`, opened when its writer is first used, on rank 0 only."""

    log_dir: str | os.PathLike[str]

    @cached_property
    def writer(self) -> Any:
        """The `torch.utils.tensorboard.SummaryWriter`."""
        from torch.utils.tensorboard import SummaryWriter  # the import takes a second

        return SummaryWriter(str(self.log_dir))


@dataclass(eq=False)
class OverlayToTensorBoard:
    """Evaluator handler that adds the most labelled slice of the first case to TensorBoard, as `validation/overlay`.

    The decollated output of the engine holds `image` in [0, 1] and the label maps `pred` and `label`, MetaTensors
    [1, X, Y, Z] on one grid. Rank 0 only. MONAI's `TensorBoardImageHandler` draws no label on the image.
    """

    tensorboard: TensorBoard

    def attach(self, engine: Evaluator) -> None:
        """Draw in the first iteration of each validation of `engine`."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda _, i: i == 1), self._draw)

    def _draw(self, engine: Evaluator) -> None:
        from samora_monai.pictures.overlay import axial_slices, overlay, slice_with_most_classes  # imports matplotlib

        item = engine.state.output[0]
        image, label, pred = (axial_slices(item[key]) for key in (Keys.IMAGE, Keys.LABEL, Keys.PRED))
        z = slice_with_most_classes(label)
        num_classes = 1 + int(max(label.max(), pred.max()))  # a class has the same colour whatever their number
        picture = overlay(image[z], label[z], pred[z], num_classes)
        self.tensorboard.writer.add_image("validation/overlay", picture, engine.state.epoch, dataformats="HWC")
