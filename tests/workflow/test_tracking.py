"""MONAI's MLflow settings on the output of this package's trainers; MLflow itself is not needed."""

from __future__ import annotations

from pathlib import Path

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.engines import SupervisedTrainer

from samora_monai.handlers import TensorBoard, TrainingHandlers
from samora_monai.schedules import WarmupPolyLR


def test_mlflow_finds_the_loss_of_each_iteration(tmp_path: Path):
    """Fails if MONAI's trainers give another output, or its settings look for the loss elsewhere."""
    network = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    losses: list[float] = []

    def loss_function(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.mse_loss(pred, label)
        losses.append(loss.item())
        return loss

    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.rand(4, 3), "label": torch.rand(4, 1)} for _ in range(3)],
        network=network,
        optimizer=optimizer,
        loss_function=loss_function,
        train_handlers=[TrainingHandlers(WarmupPolyLR(optimizer, 1, 3), None, 1, TensorBoard(tmp_path))],
        decollate=False,
    )
    settings = DEFAULT_EXP_MGMT_SETTINGS["mlflow"]["configs"]["trainer"]
    parser = ConfigParser({"imports": "$import monai", "find": settings["output_transform"]})
    find, found = parser.get_parsed_content("find"), []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: found.append(find(trainer.state.output)))
    trainer.run()
    assert [value.item() for value in found] == losses and len(losses) == 3  # MLFlowHandler calls item() of a tensor
