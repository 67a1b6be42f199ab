"""The files that a pretraining leaves: the best and the last expert, the best teacher."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from samora_monai.checkpoints import base_sha256, save_expert
from samora_monai.networks import Segmenter
from samora_monai.pretraining.mae import MAETeacher
from samora_monai.pretraining.simclr import SimCLRTeacher
from samora_monai.pretraining.teacher_files import save_teacher
from samora_monai.replacing import replacing


class ExpertCheckpoint:
    """Handler that writes an expert file: of a trainer after every epoch, of an evaluator when its key metric is best.

    Make it after the base is loaded, whose hash it takes.

    Args:
        path: the file, e.g. `models/expert.pt`.
        segmenter: the network that holds the expert.
        level: `image`, `patch` or `pixel`.
        teacher: what it is taught by, for the file's meta.
        settings: what the expert needs to be looked at again, written beside it (see `engine.settings`).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        segmenter: Segmenter,
        level: str,
        teacher: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.segmenter = segmenter
        self.level = level
        self.teacher = teacher
        self.settings = settings
        self.base_sha256 = base_sha256(segmenter)

    def attach(self, engine: Engine) -> None:
        """Watch `engine`, a MONAI trainer or an evaluator with a key metric."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._completed)

    def _completed(self, engine: Engine) -> None:
        if not _is_due(engine):
            return
        if self.settings is not None:
            with replacing(self.path.with_suffix(".json")) as unfinished:
                unfinished.write_text(json.dumps(dict(self.settings), indent=1) + "\n")
        save_expert(self.segmenter, self.path, self.level, self.teacher, self.base_sha256)


class TeacherCheckpoint:
    """Evaluator handler that writes the teacher file when the key metric is the best so far.

    Args:
        path: the file, e.g. `models/teacher.pt`.
        teacher: the teacher itself, not the module that pretrains it.
        meta: what people may want to know of the file later.
    """

    def __init__(
        self, path: str | os.PathLike[str], teacher: SimCLRTeacher | MAETeacher, meta: Mapping[str, Any]
    ) -> None:
        self.path = Path(path)
        self.teacher = teacher
        self.meta = dict(meta)

    def attach(self, engine: Evaluator) -> None:
        """Watch `engine`, a MONAI evaluator with a key metric."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._completed)

    def _completed(self, engine: Evaluator) -> None:
        if _is_due(engine):
            save_teacher(self.teacher, self.path, epoch=engine.state.epoch, **self.meta)


def _is_due(engine: Engine) -> bool:
    if not isinstance(engine, Evaluator):
        return True
    due = engine.state.best_metric_epoch == engine.state.epoch
    if due:
        engine.state.saved_epoch = engine.state.epoch  # for ValidationLog
    return due
