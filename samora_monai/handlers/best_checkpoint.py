"""Write the best model, expert or teacher, and the last expert; unlike with MONAI's `CheckpointSaver`, atomically."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn

from samora_monai.checkpoints import ExpertSettings, ModelSettings, base_sha256, save_expert, write_model_settings
from samora_monai.checkpoints.files import write_checkpoint
from samora_monai.networks import Segmenter
from samora_monai.pretraining.mae import MAETeacher
from samora_monai.pretraining.simclr import SimCLRTeacher
from samora_monai.pretraining.teacher import save_teacher


class _Best(ABC):
    """Handler that calls `save` when the key metric of an evaluator is the best so far. Rank 0 only."""

    def attach(self, engine: Engine) -> None:
        """Watch `engine`, if it is an evaluator; the configs list the handler among those of the trainer too."""
        if idist.get_rank() == 0 and isinstance(engine, Evaluator):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._validated)

    def _validated(self, engine: Evaluator) -> None:
        if engine.state.best_metric_epoch == engine.state.epoch:
            self.save(engine.state.epoch)
            engine.state.saved_epoch = engine.state.epoch  # for ValidationLog

    @abstractmethod
    def save(self, epoch: int) -> None:
        """Write the best file."""


@dataclass(eq=False)
class BestCheckpoint(_Best):
    """Evaluator handler that writes the flat state dict of a network when the key metric is the best so far.

    Args:
        path: the file, e.g. `models/model.pt`.
        network: the module itself, not its `DistributedDataParallel` wrapper.
        settings: the settings of the model, written beside it as `model.json`.
    """

    path: str | os.PathLike[str]
    network: nn.Module
    settings: ModelSettings | None = None

    def save(self, epoch: int) -> None:
        """Write the settings, and then the weights, so that no model is without settings."""
        if self.settings is not None:
            write_model_settings(self.path, self.settings)
        write_checkpoint(self.network.state_dict(), self.path)


@dataclass(eq=False)
class ExpertCheckpoint(_Best):
    """Handler of both engines of a pretraining that writes the best and the last expert file.

    List the same object among the handlers of each engine. The base must not change during the training.

    Args:
        folder: folder of `expert.pt` and `expert_last.pt`, e.g. `models`.
    """

    folder: str | os.PathLike[str]
    segmenter: Segmenter
    settings: ExpertSettings
    base_sha256: str | None = field(default=None, init=False)

    def attach(self, engine: Engine) -> None:
        """Watch an evaluator; of a trainer, hash the base at the start and write the last expert after each epoch."""
        super().attach(engine)
        if idist.get_rank() == 0 and not isinstance(engine, Evaluator):
            engine.add_event_handler(Events.STARTED, self._started)
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self._write("expert_last.pt"))

    def _started(self) -> None:
        self.base_sha256 = base_sha256(self.segmenter)

    def save(self, epoch: int) -> None:
        """Write the expert as it is now."""
        self._write("expert.pt")

    def _write(self, name: str) -> None:
        path, level = Path(self.folder) / name, self.settings.level
        save_expert(self.segmenter, path, level, base_sha256_before=self.base_sha256, settings=self.settings)


@dataclass(eq=False)
class TeacherCheckpoint(_Best):
    """Evaluator handler that writes the best teacher file.

    Args:
        teacher: the teacher itself, not the module that pretrains it.
        meta: further facts to keep in the file.
    """

    path: str | os.PathLike[str]
    teacher: SimCLRTeacher | MAETeacher
    meta: Mapping[str, Any]

    def save(self, epoch: int) -> None:
        """Write the teacher as it is now, with the epoch."""
        save_teacher(self.teacher, self.path, epoch=epoch, **self.meta)
