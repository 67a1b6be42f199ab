"""Models at given epochs of a training, each in a file of its own."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ignite.engine import Engine, Events
from torch import nn

from samora_monai.checkpoints.files import write_checkpoint
from samora_monai.checkpoints.model_settings import ModelSettings, write_model_settings


def model_at(path: str | Path, epoch: int) -> Path:
    """The file of one epoch: `models/model.pt` and 4 give `models/model_4.pt`."""
    path = Path(path)
    return path.with_name(f"{path.stem}_{epoch}{path.suffix}")


class KeepModels:
    """Write the network and its settings after each of `epochs`; a handler of the trainer.

    Args:
        path: the model's file, from which `model_at` derives the names.
        network: the network.
        settings: the settings of the model, for evaluation.
        epochs: numbers of epochs, from 1.
    """

    def __init__(self, path: str | Path, network: nn.Module, settings: ModelSettings, epochs: Collection[int]) -> None:
        self.path = path
        self.network = network
        self.settings = settings
        self.epochs = set(epochs)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._completed)

    def _completed(self, engine: Engine) -> None:
        if engine.state.epoch in self.epochs:
            file = model_at(self.path, engine.state.epoch)
            write_model_settings(file, self.settings)
            write_checkpoint(self.network.state_dict(), file)
