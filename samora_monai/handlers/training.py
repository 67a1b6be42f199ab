"""The handlers that every trainer of this package has, as one entry of a config."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines import Evaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import LrScheduleHandler
from torch.optim.lr_scheduler import LambdaLR

from samora_monai.errors import InputError
from samora_monai.handlers.progress import Progress, loss_of
from samora_monai.handlers.tensorboard import TensorBoard
from samora_monai.handlers.weight_average import WeightAverage

INTERVAL = 100  # steps between two readings of the losses on a GPU, which are also read at the end of an epoch


@dataclass(eq=False)
class TrainingHandlers:
    """Trainer handler that attaches, in this order:

    - the limit of the gradients, if there is one, and `LrScheduleHandler`, one step of the schedule per iteration;
    - the average of the weights, if there is one;
    - `NanGuard`, which also writes the losses to TensorBoard, and `Progress`;
    - the epoch of the loss function, if it has `set_epoch` (`HierarchicalLoss`);
    - the validation, every `val_interval` epochs and, unlike MONAI's `ValidationHandler`, after the last one: it saves
      the best model, so that every training leaves one.

    The trainer has `decollate=False`. Its output becomes a list with one dict for the whole batch, in which
    `from_engine(["loss"], first=True)` finds the loss, as MONAI's MLflow settings expect.

    Args:
        validator: the evaluator; None for a training without validation (a site of a federation).
        val_interval: epochs from one validation to the next.
        max_gradient_norm: gradients of all parameters together are scaled down to this Euclidean norm; None: they are
            not.
    """

    lr_scheduler: LambdaLR
    validator: Evaluator | None
    val_interval: int
    tensorboard: TensorBoard
    average: WeightAverage | None = None
    max_gradient_norm: float | None = None

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach them to `engine`, a trainer with `decollate=False`."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, _list_output)
        if self.max_gradient_norm is not None:
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._limit_gradients, self.max_gradient_norm)
        LrScheduleHandler(cast(Any, self.lr_scheduler), print_lr=False, epoch_level=False).attach(engine)
        if self.average is not None:
            self.average.attach(engine)
        NanGuard(self.tensorboard).attach(engine)
        Progress().attach(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, _set_loss_epoch)
        if self.validator is not None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate, self.validator)

    def _limit_gradients(self, engine: SupervisedTrainer, norm: float) -> None:
        torch.nn.utils.clip_grad_norm_(engine.network.parameters(), norm)

    def _validate(self, engine: SupervisedTrainer, validator: Evaluator) -> None:
        epoch = engine.state.epoch
        if epoch % self.val_interval == 0 or epoch == engine.state.max_epochs:
            validator.run(epoch)


def _list_output(engine: SupervisedTrainer) -> None:
    engine.state.output = [engine.state.output]


def _set_loss_epoch(engine: SupervisedTrainer) -> None:
    if set_epoch := getattr(engine.loss_function, "set_epoch", None):
        set_epoch(engine.state.epoch - 1)  # Ignite counts from 1


class NanGuard:
    """Trainer handler that stops the training when the loss is NaN or infinite, on every rank.

    Differs from Ignite's `TerminateOnNan` in: the run fails with a remedy, before a validation can take such a network
    for the best; the host does not wait for a GPU in every step. For the same reason the losses that are read are
    written here as `train_loss`, and not by MONAI's `TensorBoardStatsHandler`, which reads one in every step.

    Args:
        tensorboard: the event file for the losses, on rank 0; None writes none.
    """

    def __init__(self, tensorboard: TensorBoard | None = None) -> None:
        self.tensorboard = tensorboard
        self.unread: list[torch.Tensor] = []  # the losses of the last steps

    def attach(self, engine: SupervisedTrainer) -> None:
        """Check the losses of `engine`, the trainer."""
        if idist.get_rank() > 0:
            self.tensorboard = None
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    def _completed(self, engine: SupervisedTrainer) -> None:
        loss = loss_of(engine)
        self.unread.append(loss)
        epoch_ends = engine.state.iteration % engine.state.epoch_length == 0
        if loss.device.type != "cpu" and len(self.unread) < INTERVAL and not epoch_ends:
            return
        losses = torch.stack(self.unread).tolist()
        self.unread.clear()
        for step, loss in enumerate(losses, engine.state.iteration + 1 - len(losses)):
            if self.tensorboard is not None:
                self.tensorboard.writer.add_scalar("train_loss", loss, step)
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss became {loss} in step {step} (epoch {engine.state.epoch}); "
                    "start again with a lower --learning_rate or a longer --warmup"
                )
