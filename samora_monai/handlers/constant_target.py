"""How much of a teacher's features one constant vector explains, which no expert is needed for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines import Evaluator
from monai.utils import CommonKeys as Keys
from torch import Tensor

logger = logging.getLogger(__name__)


class ConstantTarget:
    """Evaluator handler that logs once, after the first validation:

    `targets: a constant vector explains 98.4% of them and leaves a loss of 0.0158 of 1`

    With t the held-out targets, over all slices and tokens: the loss of a prediction of zero is `mean t^2`, that of the
    best constant vector is the variance of the channels. An expert has learned something only if its loss is lower.
    Rank 0 only, of its own slices.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # of 1, t and t^2, for each channel
        self.logged = False

    def attach(self, engine: Evaluator) -> None:
        """Watch `engine`, the evaluator, whose output has the target as its label."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._completed)

    def _iteration(self, engine: Evaluator) -> None:
        if self.logged:
            return
        output: Mapping[str, Any] = engine.state.output  # type: ignore[assignment]  # a dict without decollation
        tokens = output[Keys.LABEL].flatten(0, -2).double()
        sums = torch.stack([torch.ones_like(tokens), tokens, tokens.square()]).sum(1)
        self.sums = sums if self.sums is None else self.sums + sums

    def _completed(self, engine: Evaluator) -> None:
        if self.logged or self.sums is None:
            return
        self.logged = True
        count, total, squares = self.sums.unbind()
        whole = float((squares / count).mean())
        left = whole - float((total / count).square().mean())
        share = f"a constant vector explains {1 - left / whole:.1%} of them"
        logger.info(f"targets: {share} and leaves a loss of {left:.3g} of {whole:.3g}")
