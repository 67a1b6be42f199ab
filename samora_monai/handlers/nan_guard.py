"""Stop training when the loss is NaN or infinite, before a validation can take such a network for the best.

Differs from Ignite's `TerminateOnNan` in: the run fails with a remedy instead of ending normally, and the host does not
wait for a GPU in every step.
"""

from __future__ import annotations

import math

import torch
from ignite.engine import Engine, Events

from samora_monai.errors import InputError
from samora_monai.handlers.progress import loss_of

INTERVAL = 100  # steps between two readings of the losses on a GPU, which are also read at the end of an epoch


class NanGuard:
    """Trainer handler that checks the loss of every step, on every rank."""

    def __init__(self) -> None:
        self.unread: list[torch.Tensor] = []  # the losses of the last steps

    def attach(self, engine: Engine) -> None:
        """Check the losses of `engine`, the trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)

    def _completed(self, engine: Engine) -> None:
        loss = loss_of(engine)
        self.unread.append(loss)
        if loss.device.type == "cpu" or len(self.unread) >= INTERVAL:
            self._check(engine)

    def _check(self, engine: Engine) -> None:
        losses = torch.stack(self.unread).tolist() if self.unread else []
        self.unread.clear()
        for step, loss in enumerate(losses, engine.state.iteration + 1 - len(losses)):
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss became {loss} in step {step} (epoch {engine.state.epoch}); "
                    "start again with a lower --learning_rate or a longer --warmup"
                )
