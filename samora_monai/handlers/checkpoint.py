"""The best weights, the last state, and the way back into a run that was killed.

MONAI's `CheckpointSaver` and `CheckpointLoader` save and restore the same objects. Differs from them in: files are
replaced in one step, so that a kill at any moment leaves the previous one whole; the best metric so far is part of the
state, so that a worse epoch after a resume does not replace the best weights.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint
from monai.engines import Evaluator, Trainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from samora_monai.checkpoints.files import sha256_of, write_checkpoint
from samora_monai.checkpoints.model_settings import ModelSettings, write_model_settings
from samora_monai.errors import InputError, MissingFileError


class BestCheckpoint:
    """Evaluator handler that writes the flat state dict of a module when the key metric is the best so far.

    Args:
        path: the file, e.g. `models/model.pt`.
        network: any object with `state_dict()`; pass the module itself, not its DistributedDataParallel wrapper.
        settings: what the weights need to be used again, written beside them.
    """

    def __init__(self, path: str | Path, network: Any, settings: ModelSettings | None = None) -> None:
        self.path = path
        self.network = network
        self.settings = settings

    def attach(self, engine: Evaluator) -> None:
        """Watch `engine`, a MONAI evaluator with a key metric."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._completed)

    def _completed(self, engine: Evaluator) -> None:
        if engine.state.best_metric_epoch == engine.state.epoch and idist.get_rank() == 0:
            if self.settings is not None:  # first, so that there is never a model without them
                write_model_settings(self.path, self.settings)
            write_checkpoint(self.network.state_dict(), self.path)
            engine.state.saved_epoch = engine.state.epoch  # for ValidationLog


class BestMetric:
    """The best value of an evaluator's key metric and its epoch, as an object that a checkpoint can hold.

    Args:
        evaluator: a MONAI evaluator.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def state_dict(self) -> dict[str, float | int]:
        """The value and the epoch; -1 and -1 before the first validation."""
        state = self.evaluator.state
        return {"best_metric": float(state.best_metric), "best_metric_epoch": int(state.best_metric_epoch)}

    def load_state_dict(self, state_dict: Mapping[str, float | int]) -> None:
        """Make the evaluator compare with these."""
        self.evaluator.state.best_metric = state_dict["best_metric"]
        self.evaluator.state.best_metric_epoch = state_dict["best_metric_epoch"]


class TrainableState:
    """What changes in a module while it trains, as an object that a checkpoint can hold: all but frozen parameters.

    Restoring needs a module with the same frozen parameters, which their hash in the state makes sure of.

    Args:
        module: its `requires_grad` must be set for good.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        self._frozen_sha256: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """The tensors that may change, and the hash of those that may not."""
        state = self.module.state_dict()
        if self._frozen_sha256 is None:
            self._frozen_sha256 = sha256_of({name: state[name] for name in self.frozen})
        changing = {name: value for name, value in state.items() if name not in self.frozen}
        return {"state_dict": changing, "frozen_sha256": self._frozen_sha256}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: the state is of a module with other parameters, or with other frozen ones.
        """
        own = self.state_dict()
        if set(state_dict["state_dict"]) != set(own["state_dict"]):
            raise ValueError("other parameters train")
        if state_dict["frozen_sha256"] != own["frozen_sha256"]:
            raise ValueError("the frozen weights are others")
        frozen = {name: value for name, value in self.module.state_dict().items() if name in self.frozen}
        self.module.load_state_dict(frozen | state_dict["state_dict"])


class LastCheckpoint:
    """Trainer handler that writes, and on request restores, the state of a run at the end of an epoch.

    Attach it last, after validation has run for the epoch; in a bundle from `initialize`, because the trainer is among
    what it saves and a handler of the trainer cannot refer to the trainer.
    Random number generators are not part of the state: a resumed run draws other crops than an uninterrupted one.

    Args:
        path: the file, e.g. `models/last.pt`.
        save_dict: named objects with `state_dict()` and `load_state_dict()`; the trainer must be there as `trainer`.
    """

    def __init__(self, path: str | Path, save_dict: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.save_dict = {
            name: obj.module if isinstance(obj, DistributedDataParallel) else obj for name, obj in save_dict.items()
        }
        self.trainer: Trainer = save_dict["trainer"]

    def attach(self, engine: Trainer) -> None:
        """Save at the end of each epoch of `engine`, the trainer."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self) -> None:
        """Write the state as it is now."""
        write_checkpoint({name: obj.state_dict() for name, obj in self.save_dict.items()}, self.path)

    def resume(self) -> None:
        """Restore every object from the file, so that the trainer goes on with the next epoch.

        The number of epochs is this run's, not the file's. Call it on all ranks.

        Raises:
            MissingFileError: if there is no such file.
            InputError: if the file is damaged, holds other objects, other weights or another epoch length, or if
                its run is already complete.
        """
        saved = self._read()
        state = self.trainer.state
        max_epochs, epoch_length = state.max_epochs, state.epoch_length
        if saved["trainer"]["epoch_length"] != epoch_length:
            raise InputError(
                f"'{self.path}' was saved with {saved['trainer']['epoch_length']} iterations per epoch, this run has "
                f"{epoch_length}; resume with the same data, batch size and number of processes"
            )
        done = saved["trainer"]["iteration"] // epoch_length
        if done >= max_epochs:
            raise InputError(
                f"'{self.path}' has completed {done} epochs and this run asks for {max_epochs}; "
                "nothing is left to do, ask for more epochs to go on"
            )
        try:
            Checkpoint.load_objects(to_load=self.save_dict, checkpoint=saved)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"'{self.path}' does not fit this run, resume with the same settings: {reason}") from error
        state.max_epochs = max_epochs
        if idist.get_rank() == 0:
            print(f"resuming after epoch {done} from {self.path}", flush=True)

    def _read(self) -> dict[str, Any]:
        if not self.path.is_file():
            raise MissingFileError(
                f"'{self.path}' is not there, expected the last checkpoint of the run to resume; "
                "start without resuming first"
            )
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(
                f"'{self.path}' cannot be read as a checkpoint: it is damaged or another kind of file; "
                "start without resuming"
            ) from error
        if not isinstance(saved, dict) or set(saved) != set(self.save_dict):
            found = ", ".join(map(str, saved)) if isinstance(saved, dict) else type(saved).__name__
            raise InputError(
                f"'{self.path}' holds {found[:200]}, expected the last checkpoint of a run with "
                f"{', '.join(self.save_dict)}; give the file that the interrupted run wrote"
            )
        return saved
