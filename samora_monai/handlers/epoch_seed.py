"""Random numbers that depend only on the seed, the epoch and the process.

A resumed run then draws the same order of slices, augmentation and dropout as an uninterrupted one. Saving the states
of all generators would not do: MONAI seeds the workers of a data loader anew in each epoch.
"""

from __future__ import annotations

import ignite.distributed as idist
import numpy as np
from ignite.engine import Events
from monai.data import set_rnd
from monai.engines import Evaluator, Trainer
from monai.utils import set_determinism


class EpochSeed:
    """Handler that seeds Python, NumPy, torch on all devices, and the random transforms of an engine's data.

    Seeds every epoch of a trainer differently, and every validation alike, so that the metrics of two epochs compare.
    Processes draw different numbers. For a `monai.data.DataLoader` without persistent workers.

    Args:
        seed: the seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Trainer | Evaluator) -> None:
        """Seed the epochs of `engine`. Ignite makes the iterator of the data after the start of an epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._started)

    def _started(self, engine: Trainer | Evaluator) -> None:
        epoch = 0 if isinstance(engine, Evaluator) else engine.state.epoch
        entropy = (self.seed, epoch, idist.get_rank())  # mixed, because different ones can have the same sum
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        set_determinism(seed)
        set_rnd(getattr(engine.data_loader, "dataset", None), seed)
