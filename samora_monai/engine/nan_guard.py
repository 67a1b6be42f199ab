"""A loss that is no number ends the training, before a validation can take its network for the best.

Ignite's `TerminateOnNan` ends a run too. Differs from it in: the run fails, and says what can be done.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys as Keys

from samora_monai.errors import InputError


class NanGuard:
    """Trainer handler that looks at the loss of every step. For a MONAI `SupervisedTrainer`, on every rank."""

    def attach(self, engine: Engine) -> None:
        """Watch `engine`, the trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    def _completed(self, engine: Engine) -> None:
        """
        Raises:
            InputError: the loss is NaN or infinite.
        """
        output: Any = engine.state.output
        loss = torch.as_tensor((output[0] if isinstance(output, list) else output)[Keys.LOSS]).item()
        if not math.isfinite(loss):
            raise InputError(
                f"the loss became {loss} in step {engine.state.iteration} (epoch {engine.state.epoch}); "
                "start again with a lower --learning_rate or a longer --warmup"
            )
