"""Random numbers that depend on the seed, the epoch and the process alone.

A resumed run then draws the same order of slices, the same augmentation and the same dropout as an undisturbed one.
Saving the states of the generators instead would need those of every random transform and of every process in the
checkpoint, and there are none to save for the workers of a data loader, which MONAI seeds anew in each epoch.
"""

from __future__ import annotations

import ignite.distributed as idist
import numpy as np
from ignite.engine import Events
from monai.data import set_rnd
from monai.engines import Evaluator, Trainer
from monai.utils import set_determinism


class EpochSeed:
    """Handler that seeds Python, NumPy, torch on all devices, and the random transforms of the data of an engine.

    It does so before every epoch of a trainer, with other numbers each time, and before every validation, with the same
    numbers each time, so that the metrics of two epochs compare. Processes draw different numbers.
    For a `monai.data.DataLoader`: Ignite makes its iterator, which draws the order and the seeds of the workers, after
    the start of an epoch. Persistent workers would keep their former state.

    Args:
        seed: the seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Trainer | Evaluator) -> None:
        """Seed the epochs of `engine`."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._started)

    def _started(self, engine: Trainer | Evaluator) -> None:
        epoch = 0 if isinstance(engine, Evaluator) else engine.state.epoch
        entropy = (self.seed, epoch, idist.get_rank())  # mixed, as sums of them would repeat themselves
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        set_determinism(seed)
        set_rnd(getattr(engine.data_loader, "dataset", None), seed)
