"""A tiny MONAI training. Run as a script, it ends without warning in the third epoch."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, MeanDice, ValidationHandler, from_engine
from monai.transforms import AsDiscreted, Compose, RandGaussianNoised
from monai.utils import set_determinism

from samora_monai.handlers import BestCheckpoint, LastCheckpoint
from samora_monai.handlers.progress import Progress, ValidationLog
from samora_monai.losses import SegmentationLoss
from samora_monai.schedules import WarmupPolyLR

SLICES = 6
BATCH = 2


def build_run(
    folder: Path,
    epochs: int = 4,
    decollate: bool = True,
    batch: int = BATCH,
    seed: int = 0,
    workers: int = 0,
    handlers: bool = True,
) -> SimpleNamespace:
    """Trainer, evaluator and their objects, connected as in the bundles, on one thread. Not started.

    Without `handlers`, nothing steps the schedule, validates or logs.
    """
    torch.set_num_threads(1)
    set_determinism(seed=seed)
    image = torch.rand(SLICES, 1, 16, 16)
    data = [{"image": x, "label": (x > 0.5).float()} for x in image]
    noise = Compose([RandGaussianNoised(keys="image", prob=1.0, std=0.3)])
    network = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Conv2d(1, 2, 3, padding=1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05)
    scheduler = WarmupPolyLR(optimizer, warmup=2, max_iterations=epochs * SLICES // batch)
    model_file = folder / "model.pt"
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=1),
        network=network,
        postprocessing=AsDiscreted(keys="pred", argmax=True),
        key_val_metric={
            "val_mean_dice": MeanDice(
                include_background=False, num_classes=2, output_transform=from_engine(["pred", "label"])
            )
        },
        val_handlers=[BestCheckpoint(model_file, network), *([ValidationLog()] if handlers else [])],
    )
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(data, noise), batch_size=batch, shuffle=True, num_workers=workers),
        network=network,
        optimizer=optimizer,
        loss_function=SegmentationLoss(),
        decollate=decollate,
        train_handlers=[
            LrScheduleHandler(scheduler, print_lr=False, epoch_level=False),  # type: ignore[arg-type]
            Progress(interval=0.0),
            ValidationHandler(interval=1, validator=evaluator),
        ]
        if handlers
        else [],
    )
    last = LastCheckpoint(folder / "last.pt", network, optimizer, scheduler, trainer, evaluator)
    return SimpleNamespace(
        trainer=trainer,
        evaluator=evaluator,
        scheduler=scheduler,
        last=last,
        model_file=model_file,
        best=last.objects["best"],
    )


@pytest.fixture(name="build", scope="session")
def _build():
    return build_run


if __name__ == "__main__":
    run = build_run(Path(sys.argv[1]), workers=int(sys.argv[2]))
    run.last.start()
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2 * SLICES // BATCH + 2), lambda engine: os._exit(9))
    run.trainer.run()
