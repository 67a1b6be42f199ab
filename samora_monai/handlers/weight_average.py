"""Exponential moving average (EMA) of the weights of a network: the mean teacher, and what is validated and saved.

Tarvainen and Valpola, https://arxiv.org/abs/1703.01780.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from samora_monai.errors import InputError


class WeightAverage:
    """Trainer handler that averages the parameters that train, after every step.

    With step n from 1, `average += rate * (weights - average)`, `rate = max(1 - decay, 1 / (n + 1))`: first the plain
    mean of all weights so far, so that the initial ones, some of which are random, are soon forgotten. Buffers are
    copied.

    Differs from Ignite's `EMAHandler` in: frozen parameters are shared with the network, so that they take no memory
    and stay equal bit by bit; the average has a state, for `LastCheckpoint`.

    Args:
        network: the network that trains, or its `DistributedDataParallel` wrapper; its `requires_grad` must be final.
        decay: above 0 and below 1; None for no average.

    Attributes:
        network: the averaged copy in evaluation mode; without a decay, `network` as given.
        module: the same without a wrapper.
        updates: number of steps averaged.

    Raises:
        InputError: `decay` is out of range.
    """

    def __init__(self, network: nn.Module, decay: float | None = None) -> None:
        if decay is not None and (isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay < 1):
            raise InputError(f"ema must be a decay above 0 and below 1, or null, got {decay!r}; use --ema 0.99")
        self.decay = decay
        self.updates = 0
        self._engine: Engine | None = None
        self.network = network
        self.module: nn.Module = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        self._source = self.module
        if decay is not None:
            frozen = {id(p): p for p in self._source.parameters() if not p.requires_grad}
            self.network = self.module = deepcopy(self._source, frozen).requires_grad_(False).eval()

    def attach(self, engine: Engine) -> None:
        """Average after each step of `engine`, the trainer, if there is a decay."""
        if self.decay is not None:
            self._engine = engine
            engine.add_event_handler(Events.STARTED, self._started)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)

    @property
    def progress(self) -> float:
        """The averaged steps as a fraction of those of the training, from 0 to 1."""
        assert self._engine is not None, "attach() comes first"
        state = self._engine.state
        assert state.max_epochs is not None and state.epoch_length is not None
        return self.updates / (state.max_epochs * state.epoch_length)

    def _started(self) -> None:
        if not self.updates:  # else the run was resumed; the weights may have been loaded after the copy was made
            self.module.load_state_dict(self._source.state_dict())

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights of the network to the average."""
        assert self.decay is not None
        self.updates += 1
        decay = min(self.decay, 1 - 1 / (self.updates + 1))
        names = [name for name, _ in self._trainable()]
        averages = [self.module.get_parameter(name) for name in names]
        get_ema_multi_avg_fn(decay)(averages, [parameter for _, parameter in self._trainable()], self.updates)
        for average, buffer in zip(self.module.buffers(), self._source.buffers(), strict=True):
            average.copy_(buffer)

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self._source.named_parameters() if parameter.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged parameters by their names, and the number of updates."""
        averages = {name: self.module.get_parameter(name).detach() for name, _ in self._trainable()}
        return {"average": averages, "updates": self.updates}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state; raise a `ValueError` if it averages other parameters."""
        own = self.state_dict()["average"]
        if own.keys() != state_dict["average"].keys():
            raise ValueError("it averages other parameters")
        self.module.load_state_dict(self._source.state_dict() | state_dict["average"])
        self.updates = state_dict["updates"]
