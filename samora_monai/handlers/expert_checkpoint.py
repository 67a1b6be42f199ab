"""The files that a pretraining leaves: the best and the last expert, or the best teacher."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from samora_monai.checkpoints import ExpertSettings, base_sha256, save_expert
from samora_monai.networks import Segmenter
from samora_monai.pretraining.mae import MAETeacher
from samora_monai.pretraining.simclr import SimCLRTeacher
from samora_monai.pretraining.teacher import save_teacher


class PretrainingCheckpoint(ABC):
    """Handler of both engines of a pretraining; list the same object among the handlers of each.

    Args:
        best: file that is written when the key metric of the evaluator is the best so far.
        last: file that is written after every epoch of the trainer; None for none.
    """

    def __init__(self, best: str | os.PathLike[str], last: str | os.PathLike[str] | None = None) -> None:
        self.best = Path(best)
        self.last = None if last is None else Path(last)

    def attach(self, engine: Engine) -> None:
        """Write the files of `engine`, the trainer or the evaluator, on rank 0."""
        if idist.get_rank() > 0:
            return
        if isinstance(engine, Evaluator):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._validated)
        else:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._trained)

    def _trained(self, engine: Engine) -> None:
        if self.last is not None:
            self.save(self.last, engine)

    def _validated(self, engine: Evaluator) -> None:
        if engine.state.best_metric_epoch == engine.state.epoch:
            self.save(self.best, engine)
            engine.state.saved_epoch = engine.state.epoch  # for ValidationLog

    @abstractmethod
    def save(self, path: Path, engine: Engine) -> None:
        """Write the file `path`."""


class ExpertCheckpoint(PretrainingCheckpoint):
    """Writes the best and the last expert file. The base must not change from the start of the training on.

    Args:
        folder: folder of `expert.pt` and `expert_last.pt`, e.g. `models`.
        segmenter: the network that holds the expert.
        settings: what the expert is trained with.
    """

    def __init__(self, folder: str | os.PathLike[str], segmenter: Segmenter, settings: ExpertSettings) -> None:
        super().__init__(Path(folder) / "expert.pt", Path(folder) / "expert_last.pt")
        self.segmenter = segmenter
        self.settings = settings
        self.base_sha256: str | None = None

    def attach(self, engine: Engine) -> None:
        """Also hash the base when the trainer starts."""
        super().attach(engine)
        if idist.get_rank() == 0 and not isinstance(engine, Evaluator):
            engine.add_event_handler(Events.STARTED, self._started)

    def _started(self, engine: Engine) -> None:
        self.base_sha256 = base_sha256(self.segmenter)

    def save(self, path: Path, engine: Engine) -> None:
        """Write the expert as it is now."""
        save_expert(
            self.segmenter, path, self.settings.level, base_sha256_before=self.base_sha256, settings=self.settings
        )


class TeacherCheckpoint(PretrainingCheckpoint):
    """Writes the best teacher file.

    Args:
        path: the file, e.g. `models/teacher.pt`.
        teacher: the teacher itself, not the module that pretrains it.
        meta: further facts to keep in the file.
    """

    def __init__(
        self, path: str | os.PathLike[str], teacher: SimCLRTeacher | MAETeacher, meta: Mapping[str, Any]
    ) -> None:
        super().__init__(path)
        self.teacher = teacher
        self.meta = dict(meta)

    def save(self, path: Path, engine: Engine) -> None:
        """Write the teacher as it is now, with the epoch."""
        save_teacher(self.teacher, path, epoch=engine.state.epoch, **self.meta)
