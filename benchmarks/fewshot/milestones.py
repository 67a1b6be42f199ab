"""The weights at given epochs of a training, each as a model of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from samora_monai.checkpoints.files import write_checkpoint
from samora_monai.checkpoints.settings import write_settings


def model_at(path: str | Path, epoch: int) -> Path:
    """The file of one epoch: ``models/model.pt`` and 4 give ``models/model_4.pt``."""
    path = Path(path)
    return path.with_name(f"{path.stem}_{epoch}{path.suffix}")


class KeepModels:
    """Trainer handler that writes the network and its settings after each of `epochs`.

    Args:
        path: as `model_at` takes it.
        network: the module itself.
        settings: what evaluation needs beside the weights.
        epochs: numbers of epochs, from 1.
    """

    def __init__(self, path: str | Path, network: nn.Module, settings: Mapping[str, Any], epochs: Collection[int]):
        self.path = path
        self.network = network
        self.settings = settings
        self.epochs = set(epochs)

    def attach(self, engine: Engine) -> None:
        """Watch `engine`, the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._completed)

    def _completed(self, engine: Engine) -> None:
        if engine.state.epoch in self.epochs:
            file = model_at(self.path, engine.state.epoch)
            write_settings(file, self.settings)
            write_checkpoint(self.network.state_dict(), file)
