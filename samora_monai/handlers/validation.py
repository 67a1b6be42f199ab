"""Validation within a training.

Differs from `monai.handlers.ValidationHandler` in: the last epoch is validated too, whatever the interval. Validation
saves the best model, so that every training leaves one.
"""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler


class EpochValidation(ValidationHandler):
    """Trainer handler that runs the validator every `interval` epochs and after the last one.

    Args:
        interval: number of epochs from one validation to the next.
        validator: the evaluator.
    """

    def attach(self, engine: Engine) -> None:
        """Validate the training of `engine`, the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._is_due), self)

    def _is_due(self, engine: Engine, epoch: int) -> bool:
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs
