"""Random numbers of an epoch that depend on the seed, the epoch and the process alone.

A resumed run then draws the same order of slices, the same augmentation and the same dropout as an undisturbed one.
Saving the states of the generators instead would need those of every random transform and of every process in the
checkpoint, and there are none to save for the workers of a data loader, which MONAI seeds anew in each epoch.
"""

from __future__ import annotations

import ignite.distributed as idist
import numpy as np
from ignite.engine import Events
from monai.data import set_rnd
from monai.engines import Trainer
from monai.utils import set_determinism


class EpochSeed:
    """Trainer handler that seeds Python, NumPy, torch on all devices, and the random transforms before every epoch.

    Processes draw different numbers. For a `monai.data.DataLoader`: Ignite makes its iterator, which draws the order
    and the seeds of the workers, after the start of an epoch. Persistent workers would keep their former state.

    Args:
        seed: the seed of the run, equal in all processes.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Trainer) -> None:
        """Seed the epochs of `engine`."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._started)

    def _started(self, engine: Trainer) -> None:
        entropy = (self.seed, engine.state.epoch, idist.get_rank())  # mixed: seed + epoch + rank would repeat itself
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        set_determinism(seed)
        set_rnd(getattr(engine.data_loader, "dataset", None), seed)
