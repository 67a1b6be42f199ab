"""Stop training when the loss is NaN or infinite, before a validation can take such a network for the best.

Ignite's `TerminateOnNan` ends a run too. Differs from it in: the run fails with a remedy, and a GPU is not waited for
in every step.
"""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys as Keys

from samora_monai.errors import InputError


class NanGuard:
    """Trainer handler that watches the loss of every step. For a MONAI `SupervisedTrainer`, on every rank.

    Losses are checked where they are. On a GPU the result is read every `interval` steps and at the end of an epoch, so
    that the host runs ahead of the device; on a CPU, where there is nothing to wait for, after each step.

    Args:
        interval: steps between two readings on a GPU.
    """

    def __init__(self, interval: int = 100) -> None:
        self.interval = interval
        self.first: torch.Tensor | None = (
            None  # [2]: step of the first loss that is not finite (0: none), and its value
        )

    def attach(self, engine: Engine) -> None:
        """Watch `engine`, the trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)

    def _completed(self, engine: Engine) -> None:
        output: Any = engine.state.output
        loss = torch.as_tensor((output[0] if isinstance(output, list) else output)[Keys.LOSS]).detach().double()
        this = torch.stack([torch.full_like(loss, engine.state.iteration), loss])
        none = torch.zeros_like(this) if self.first is None else self.first
        self.first = torch.where((none[0] == 0) & ~torch.isfinite(loss), this, none)
        if loss.device.type == "cpu" or engine.state.iteration % self.interval == 0:
            self._check(engine)

    def _check(self, engine: Engine) -> None:
        """
        Raises:
            InputError: a loss was NaN or infinite.
        """
        if self.first is None:
            return
        step, loss = self.first.tolist()
        if step:
            raise InputError(
                f"the loss became {loss} in step {int(step)} (epoch {engine.state.epoch}); "
                "start again with a lower --learning_rate or a longer --warmup"
            )
