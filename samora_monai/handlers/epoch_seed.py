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


def seed_epochs(engine: Trainer | Evaluator, seed: int) -> None:
    """Before each epoch, seed Python, NumPy, torch on all devices, and the random transforms of the engine's data.

    Seeds every epoch of a trainer differently, and every validation alike, so that the metrics of two epochs compare.
    Processes draw different numbers. For a `monai.data.DataLoader` without persistent workers, whose iterator Ignite
    makes after the start of an epoch.
    """

    def started() -> None:
        epoch = 0 if isinstance(engine, Evaluator) else engine.state.epoch
        entropy = (seed, epoch, idist.get_rank())  # mixed, because different ones can have the same sum
        epoch_seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        set_determinism(epoch_seed)
        set_rnd(getattr(engine.data_loader, "dataset", None), epoch_seed)

    engine.add_event_handler(Events.EPOCH_STARTED, started)
