"""Log lines of a training: position, loss, rate and remaining time; the metric of each validation.

MONAI's `StatsHandler` logs a line per iteration, without the rate and the remaining time of all epochs.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, SupervisedTrainer
from monai.handlers import TensorBoardStatsHandler
from monai.utils import CommonKeys as Keys

from samora_monai.handlers.tensorboard import TensorBoard

logger = logging.getLogger(__name__)


class Progress:
    """Trainer handler that logs `epoch 3/100  12.4%  loss 0.43  lr 1.2e-3  31 slices/s  ETA 00:12:30`.

    Logs every `interval` seconds and at the end of each epoch, on rank 0 only. The loss is the mean since the previous
    line, at the end of an epoch the mean over the epoch; the rate counts the slices of all ranks. The remaining time is
    extrapolated from this run alone, validation included, so that it is correct after a resume.
    """

    def __init__(self, interval: float = 10.0) -> None:
        self.interval = interval

    def attach(self, engine: SupervisedTrainer) -> None:
        """Log the progress of `engine`, the trainer."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._started)
            engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self._log(engine, self.epoch))

    def _started(self, engine: SupervisedTrainer) -> None:
        self.start_time = time.monotonic()
        self.start_iteration = engine.state.iteration

    def _epoch_started(self) -> None:
        self.epoch, self.line = _Span(), _Span()

    def _iteration(self, engine: SupervisedTrainer) -> None:
        batch, loss = engine.state.batch, loss_of(engine)
        slices = len(batch) if isinstance(batch, list) else len(batch[Keys.IMAGE])  # decollated or not
        for span in (self.epoch, self.line):
            span.add(loss, slices)
        epoch_ends = engine.state.iteration % engine.state.epoch_length == 0  # which has a line of its own
        if not epoch_ends and time.monotonic() - self.line.start >= self.interval:
            self._log(engine, self.line)
            self.line = _Span()

    def _log(self, engine: SupervisedTrainer, span: _Span) -> None:
        now, state = time.monotonic(), engine.state
        total = state.max_epochs * state.epoch_length
        remaining = (now - self.start_time) / (state.iteration - self.start_iteration) * (total - state.iteration)
        rate = span.slices * idist.get_world_size() / max(now - span.start, 1e-9)
        line = (
            f"epoch {state.epoch}/{state.max_epochs}",
            f"{state.iteration / total:.1%}",
            f"loss {float(span.loss) / span.steps:.4g}",
            f"lr {engine.optimizer.param_groups[0]['lr']:.1e}".replace("e-0", "e-"),
            f"{rate:.{0 if rate >= 10 else 1}f} slices/s",
            f"ETA {duration(remaining)}",
        )
        logger.info("  ".join(line))


@dataclass(eq=False)
class ValidationLog:
    """Evaluator handler that logs `validation mean Dice 0.812 (best 0.812 at epoch 3, saved)`. Rank 0 only.

    List it after the handler that saves the best weights, which sets `engine.state.saved_epoch`. `name` is that of the
    key metric; all metrics of the evaluator are written to `tensorboard` too, if given.
    """

    name: str = "mean Dice"
    tensorboard: TensorBoard | None = None

    def attach(self, engine: Evaluator) -> None:
        """Log the key metric of `engine`, the evaluator, after each validation."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._completed)
            if self.tensorboard is not None:
                TensorBoardStatsHandler(self.tensorboard.writer, iteration_log=False).attach(engine)

    def _completed(self, engine: Evaluator) -> None:
        state = engine.state
        saved = ", saved" if getattr(state, "saved_epoch", None) == state.epoch else ""
        best = f"best {state.best_metric:.4g} at epoch {state.best_metric_epoch}{saved}"
        logger.info(f"validation {self.name} {state.metrics[state.key_metric_name]:.4g} ({best})")


def loss_of(engine: Engine) -> torch.Tensor:
    """Return the loss of the trainer's last step, detached; its output is a dict, or a list of dicts if decollated."""
    output: Any = engine.state.output
    return torch.as_tensor((output[0] if isinstance(output, list) else output)[Keys.LOSS]).detach()


def duration(seconds: float) -> str:
    """`hh:mm:ss`; hours may exceed 24."""
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{s:02d}"


class _Span:
    """Steps since `start`. Losses are summed on their device, so that adding one does not wait for the GPU."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.loss: float | torch.Tensor = 0.0
        self.steps = self.slices = 0

    def add(self, loss: torch.Tensor, slices: int) -> None:
        self.loss = self.loss + loss
        self.steps += 1
        self.slices += slices
