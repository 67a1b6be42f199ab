"""The average of the weights: its equation, what it shares with the network, and its state."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from samora_monai.handlers import LastCheckpoint, WeightAverage
from tests.nested import assert_equal
from tests.tiny import refused


def partly_frozen() -> nn.Sequential:
    """A frozen convolution, a batch norm and a convolution that train."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    net[0].requires_grad_(False)
    return net


def train(net: nn.Module, average: WeightAverage, steps: int, weights: list[torch.Tensor] | None = None) -> None:
    """Random steps; `weights` collects the last convolution's after each."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5)

    def step(engine: Engine, batch: int) -> None:
        optimizer.zero_grad()
        net(torch.randn(2, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        if weights is not None:
            weights.append(net[2].weight.detach().clone())

    engine = Engine(step)
    average.attach(engine)
    engine.run(range(steps))


def test_first_is_the_mean_of_all_weights_and_then_forgets_by_the_decay():
    net = partly_frozen()
    average, weights = WeightAverage(net, decay=0.75), [net[2].weight.detach().clone()]
    train(net, average, 3, weights)
    assert isinstance(average.module, nn.Sequential) and average.updates == 3
    torch.testing.assert_close(average.module[2].weight, torch.stack(weights).mean(0))
    mean = average.module[2].weight.clone()
    average.update()
    torch.testing.assert_close(average.module[2].weight, 0.75 * mean + 0.25 * weights[-1])


def test_frozen_parameters_are_shared_and_buffers_copied():
    net = partly_frozen()
    before, average = deepcopy(net.state_dict()), WeightAverage(net, decay=0.9)
    train(net, average, 20)
    state = average.module.state_dict()
    for name in ("0.weight", "0.bias"):
        assert state[name].data_ptr() == net.state_dict()[name].data_ptr()
        assert torch.equal(state[name], before[name])
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(state[name], net.state_dict()[name]) and not torch.equal(state[name], before[name])
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert [parameter.requires_grad for parameter in net.parameters()] == [False] * 2 + [True] * 4
    assert net.training and not average.module.training


def test_starts_from_weights_that_were_loaded_after_it_was_made():
    net = partly_frozen()
    average = WeightAverage(net, decay=0.5)
    net.load_state_dict({key: value + 1 for key, value in net.state_dict().items()})
    weights = [net[2].weight.detach().clone()]
    train(net, average, 1, weights)
    assert isinstance(average.module, nn.Sequential)
    torch.testing.assert_close(average.module[2].weight, (weights[0] + weights[1]) / 2)


def test_without_a_decay_it_is_the_network_itself():
    net = partly_frozen()
    average = WeightAverage(net)
    train(net, average, 2)
    assert average.network is average.module is net and average.updates == 0


@pytest.mark.parametrize("decay", [0, 1, 1.5, "0.99", True])
def test_refuses_a_decay_out_of_range(decay: object):
    with refused("ema must be a decay above 0 and below 1", repr(decay), "--ema 0.99"):
        WeightAverage(partly_frozen(), decay)  # type: ignore[arg-type]


def test_resumed_average_equals_an_undisturbed_one(build, tmp_path: Path):
    """Through the last checkpoint, which a run without an average refuses."""

    def run(folder: str, epochs: int, decay: float | None = 0.8) -> tuple[LastCheckpoint, WeightAverage]:
        (tmp_path / folder).mkdir(exist_ok=True)
        built = build(tmp_path / folder, epochs=epochs)
        network, optimizer = built.trainer.network, built.trainer.optimizer
        average = WeightAverage(network, decay)
        average.attach(built.trainer)
        last = LastCheckpoint(
            tmp_path / folder / "last.pt", network, optimizer, built.scheduler, built.trainer, built.evaluator, average
        )
        return last, average

    undisturbed, expected = run("undisturbed", 4)
    undisturbed.start()
    undisturbed.trainer.run()
    stopped, _ = run("stopped", 4)
    stopped.start()
    stopped.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), stopped.trainer.terminate)
    stopped.trainer.run()
    resumed, average = run("stopped", 4)
    resumed.start(resume=True)
    resumed.trainer.run()
    assert average.updates == expected.updates == 12
    assert_equal(average.state_dict(), expected.state_dict(), "average")
    without, _ = run("stopped", 5, decay=None)
    with refused("holds model", "average", "expected the last checkpoint"):
        without.start(resume=True)
    other = WeightAverage(nn.Conv2d(1, 2, 3), 0.8)
    with pytest.raises(ValueError, match="it averages other parameters"):
        other.load_state_dict(average.state_dict())
