"""The state of a training after its last complete epoch, and its continuation after a kill.

Differs from MONAI's `CheckpointSaver` and `CheckpointLoader` in: the file is replaced atomically, so that a kill leaves
the previous one whole; it holds the best metric, so that a worse epoch after a resume does not replace the best
weights, and no frozen weights; a resumed run draws the random numbers of an uninterrupted one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint
from monai.data import set_rnd
from monai.engines import Evaluator, Trainer
from monai.utils import set_determinism
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from samora_monai.checkpoints.files import read_checkpoint, sha256_of, write_checkpoint
from samora_monai.errors import InputError, MissingFileError
from samora_monai.handlers.weight_average import WeightAverage
from samora_monai.settings import flag

logger = logging.getLogger(__name__)

_OPTIONAL = {"scaler", "seed"}  # not in every last checkpoint


class LastCheckpoint:
    """The state of a run at the end of its last complete epoch: written after every epoch, restored on request.

    `start` attaches it to the trainer last, so that the validation of an epoch comes before its save. A handler in the
    trainer's own list could not refer to the trainer.

    Args:
        path: the file, e.g. `eval/last.pt`.
        network: the module itself, not its `DistributedDataParallel` wrapper; its `requires_grad` must be final.
        trainer: its epoch, iteration and gradient scaler are saved.
        evaluator: its best metric is saved.
        average: the average of the weights, saved if it has a decay.
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        trainer: Trainer,
        evaluator: Evaluator,
        average: WeightAverage | None = None,
    ) -> None:
        self.path = Path(path)
        self.trainer = trainer
        self.evaluator = evaluator
        self.seed = 0
        self.objects: dict[str, Any] = {
            "model": TrainableState(network),
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
            "trainer": trainer,
            "best": BestMetric(evaluator),
        }
        if average is not None and average.decay is not None:
            self.objects["average"] = average
        if (scaler := getattr(trainer, "scaler", None)) is not None and scaler.is_enabled():
            self.objects["scaler"] = scaler

    def start(self, resume: bool | str = False) -> None:
        """Restore the state if `resume` is true, seed each epoch and validation, and save after every epoch.

        Call it once, in all processes, after `set_determinism`, whose seed is that of the run.

        Raises:
            InputError: `resume` is neither true nor false, or as `resume()`.
        """
        self.seed = torch.initial_seed()
        if flag(resume, "resume"):
            self.resume()
        for engine in (self.trainer, self.evaluator):
            seed_epochs(engine, self.seed)
        if idist.get_rank() == 0:
            self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self) -> None:
        """Write the state as it is now."""
        state = {name: obj.state_dict() for name, obj in self.objects.items()}
        write_checkpoint(state | {"seed": self.seed}, self.path)

    def resume(self) -> None:
        """Restore every object from the file, but not its number of epochs; the trainer continues with the next epoch.

        Raises:
            MissingFileError: there is no such file.
            InputError: the file is damaged, holds other objects, weights or epoch length, or its run is complete.
        """
        saved = self._read()
        state = self.trainer.state
        max_epochs, epoch_length = state.max_epochs, state.epoch_length
        if saved["trainer"]["epoch_length"] != epoch_length:
            raise InputError(
                f"'{self.path}' was saved with {saved['trainer']['epoch_length']} iterations per epoch, this run has "
                f"{epoch_length}; resume with the same data, batch size and number of processes"
            )
        if (done := saved["trainer"]["iteration"] // epoch_length) >= max_epochs:
            raise InputError(
                f"'{self.path}' has completed {done} epochs and this run asks for {max_epochs}; "
                "nothing is left to do, ask for more epochs to continue"
            )
        objects = {name: obj for name, obj in self.objects.items() if name in saved}
        try:
            Checkpoint.load_objects(to_load=objects, checkpoint=saved)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"'{self.path}' does not fit this run, resume with the same settings: {reason}") from error
        state.max_epochs = max_epochs
        if idist.get_rank() == 0:
            logger.info(f"resuming after epoch {done} from {self.path}")
            if difference := self._difference(saved):
                logger.warning(f"the resumed run will not equal an undisturbed one: {difference}")

    def _read(self) -> dict[str, Any]:
        if not self.path.is_file():
            raise MissingFileError(
                f"'{self.path}' is not there, expected the last checkpoint of the run to resume; start without resuming"
            )
        try:
            saved, _ = read_checkpoint(self.path)
        except InputError as error:
            problem = "cannot be read as a checkpoint: it is damaged or another kind of file; start without resuming"
            raise InputError(f"'{self.path}' {problem}") from error
        if saved.keys() - _OPTIONAL != self.objects.keys() - _OPTIONAL:
            expected = ", ".join(name for name in self.objects if name not in _OPTIONAL)
            raise InputError(
                f"'{self.path}' holds {', '.join(map(str, saved)):.200}, expected the last checkpoint of a run with "
                f"{expected}; give the file that the interrupted run wrote"
            )
        return saved

    def _difference(self, saved: Mapping[str, Any]) -> str | None:
        """Return why this run will not repeat the saved one exactly, which is no reason to refuse it, or None."""
        if "seed" not in saved:
            return f"'{self.path}' holds no seed, it was written by an earlier release"
        if saved["seed"] != self.seed:
            return f"its seed was {saved['seed']}, this run's is {self.seed}"
        if ("scaler" in saved) != ("scaler" in self.objects):
            return "its gradients were scaled and this run's are not, or the reverse; check amp and device"
        return None


class TrainableState:
    """The state of all parameters and buffers of `module` but the frozen parameters, of which it holds a hash.

    The `requires_grad` of the module must be final. Restoring needs a module with the same frozen parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        self._frozen_sha256: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors that training changes, and the hash of those that it does not."""
        state = self.module.state_dict()
        if self._frozen_sha256 is None:
            self._frozen_sha256 = sha256_of({name: state[name] for name in self.frozen})
        changing = {name: value for name, value in state.items() if name not in self.frozen}
        return {"state_dict": changing, "frozen_sha256": self._frozen_sha256}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state; raise a `ValueError` if the module trains other parameters, or has other frozen ones."""
        own = self.state_dict()
        if set(state_dict["state_dict"]) != set(own["state_dict"]):
            raise ValueError("it trains other parameters")
        if state_dict["frozen_sha256"] != own["frozen_sha256"]:
            raise ValueError("its frozen weights differ")
        self.module.load_state_dict(self.module.state_dict() | state_dict["state_dict"])


def seed_epochs(engine: Trainer | Evaluator, seed: int) -> None:
    """Before each epoch, seed Python, NumPy, torch on all devices, and the random transforms of the engine's data.

    The seeds depend only on `seed`, the epoch and the process. Saving the states of all generators would not do: MONAI
    seeds the workers of a data loader anew in each epoch. Every epoch of a trainer is seeded differently, and every
    validation alike, so that the metrics of two epochs compare. For a `monai.data.DataLoader` without persistent
    workers, whose iterator Ignite makes after the start of an epoch.
    """

    def started() -> None:
        epoch = 0 if isinstance(engine, Evaluator) else engine.state.epoch
        entropy = (seed, epoch, idist.get_rank())  # mixed, because different ones can have the same sum
        epoch_seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        set_determinism(epoch_seed)
        set_rnd(getattr(engine.data_loader, "dataset", None), epoch_seed)

    engine.add_event_handler(Events.EPOCH_STARTED, started)


class BestMetric:
    """The best value of an evaluator's key metric and its epoch, as a state; -1 and -1 before the first validation."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def state_dict(self) -> dict[str, float | int]:
        """Return the value and the epoch."""
        state = self.evaluator.state
        return {"best_metric": float(state.best_metric), "best_metric_epoch": int(state.best_metric_epoch)}

    def load_state_dict(self, state_dict: Mapping[str, float | int]) -> None:
        """Set the value and the epoch."""
        for name in ("best_metric", "best_metric_epoch"):
            setattr(self.evaluator.state, name, state_dict[name])
