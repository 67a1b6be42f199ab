"""The files that a training leaves: the best model, the best and the last expert, the best teacher.

Differs from MONAI's `CheckpointSaver` in: files are replaced atomically, and have the formats of `checkpoints`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
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
from samora_monai.pretraining.teacher_files import save_teacher


class _Best(ABC):
    """Handler that writes a file when the key metric of an evaluator is the best so far. Rank 0 only.

    Args:
        path: the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Watch `engine`, a MONAI evaluator with a key metric. Attached to a trainer too, where the config lists it."""
        if idist.get_rank() == 0 and isinstance(engine, Evaluator):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._validated)

    def _validated(self, engine: Evaluator) -> None:
        if engine.state.best_metric_epoch == engine.state.epoch:
            self.save(self.path, engine)
            engine.state.saved_epoch = engine.state.epoch  # for ValidationLog

    @abstractmethod
    def save(self, path: Path, engine: Engine) -> None:
        """Write the file `path`."""


class BestCheckpoint(_Best):
    """Evaluator handler that writes the flat state dict of a network when the key metric is the best so far.

    Args:
        path: the file, e.g. `models/model.pt`.
        network: the module itself, not its `DistributedDataParallel` wrapper.
        settings: the settings of the model, written beside it as `model.json`.
    """

    def __init__(
        self, path: str | os.PathLike[str], network: nn.Module, settings: ModelSettings | None = None
    ) -> None:
        super().__init__(path)
        self.network = network
        self.settings = settings

    def save(self, path: Path, engine: Engine) -> None:
        """Write the settings, and then the weights, so that no model is without settings."""
        if self.settings is not None:
            write_model_settings(path, self.settings)
        write_checkpoint(self.network.state_dict(), path)


class ExpertCheckpoint(_Best):
    """Handler of both engines of a pretraining that writes the best and the last expert file.

    List the same object among the handlers of each engine. The base must not change during the training.

    Args:
        folder: folder of `expert.pt` and `expert_last.pt`, e.g. `models`.
        segmenter: the network that holds the expert.
        settings: what the expert is trained with.
    """

    def __init__(self, folder: str | os.PathLike[str], segmenter: Segmenter, settings: ExpertSettings) -> None:
        super().__init__(Path(folder) / "expert.pt")
        self.segmenter = segmenter
        self.settings = settings
        self.base_sha256: str | None = None

    def attach(self, engine: Engine) -> None:
        """Watch an evaluator; of a trainer, hash the base at the start and write the last expert after each epoch."""
        super().attach(engine)
        if idist.get_rank() == 0 and not isinstance(engine, Evaluator):
            engine.add_event_handler(Events.STARTED, self._started)
            engine.add_event_handler(
                Events.EPOCH_COMPLETED, lambda: self.save(self.path.with_name("expert_last.pt"), engine)
            )

    def _started(self) -> None:
        self.base_sha256 = base_sha256(self.segmenter)

    def save(self, path: Path, engine: Engine) -> None:
        """Write the expert as it is now."""
        level, before = self.settings.level, self.base_sha256
        save_expert(self.segmenter, path, level, base_sha256_before=before, settings=self.settings)


class TeacherCheckpoint(_Best):
    """Evaluator handler that writes the best teacher file.

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
        self.meta = meta

    def save(self, path: Path, engine: Engine) -> None:
        """Write the teacher as it is now, with the epoch."""
        save_teacher(self.teacher, path, epoch=engine.state.epoch, **self.meta)
