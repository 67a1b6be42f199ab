"""Stop training when the loss is NaN or infinite, before a validation can take such a network for the best.

Differs from Ignite's `TerminateOnNan` in: the run fails with a remedy instead of ending normally, and the host does not
wait for a GPU in every step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.utils import CommonKeys as Keys

from samora_monai.errors import InputError


class NanGuard:
    """Trainer handler that checks the loss of every step. For a MONAI `SupervisedTrainer`, on every rank.

    On a GPU the losses are read together, every `interval` steps and at the end of an epoch; on a CPU after each step.

    Args:
        interval: steps between two readings on a GPU.
    """

    def __init__(self, interval: int = 100) -> None:
        self.interval = interval
        self.unread: list[torch.Tensor] = []  # the losses of the last steps

    def attach(self, engine: SupervisedTrainer) -> None:
        """Check the losses of `engine`, the trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)

    def _completed(self, engine: Engine) -> None:
        output: Any = engine.state.output
        loss = torch.as_tensor((output[0] if isinstance(output, list) else output)[Keys.LOSS]).detach()
        self.unread.append(loss)
        if loss.device.type == "cpu" or len(self.unread) >= self.interval:
            self._check(engine)

    def _check(self, engine: Engine) -> None:
        """
        Raises:
            InputError: a loss was NaN or infinite.
        """
        if not self.unread:
            return
        losses = torch.stack(self.unread).tolist()
        self.unread.clear()
        for step, loss in enumerate(losses, engine.state.iteration + 1 - len(losses)):
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss became {loss} in step {step} (epoch {engine.state.epoch}); "
                    "start again with a lower --learning_rate or a longer --warmup"
                )
