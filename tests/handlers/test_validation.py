"""When a training validates."""

from __future__ import annotations

import pytest
from ignite.engine import Engine

from samora_monai.handlers.validation import EpochValidation


@pytest.mark.parametrize(("interval", "epochs", "expected"), [(2, 5, [2, 4, 5]), (2, 4, [2, 4]), (5, 3, [3])])
def test_every_interval_and_the_last_epoch(interval, epochs, expected):
    validated = []

    class Note(EpochValidation):
        def __call__(self, engine):
            validated.append(engine.state.epoch)

    trainer = Engine(lambda engine, batch: None)
    Note(interval).attach(trainer)
    trainer.run([0, 0], max_epochs=epochs)
    assert validated == expected
