"""Learning rates with a linear warm-up: SAMed's polynomial decay (https://github.com/hitachinsk/SAMed) and a cosine.

SAMed's `trainer.py` sets the rate after each step, so that the first warm-up rate and the full rate last two steps
each; this is reproduced step by step.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from monai.optimizers import WarmupCosineSchedule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_poly(step: int, *, warmup: int, max_iterations: int, exponent: float) -> float:
    """The factor on the base rate in optimiser step `step`.

    With i = step - 1 (the reference's counter when it sets this rate, 0 for the first two steps):
    `(i + 1) / warmup` while i < warmup, then `(1 - (i - warmup) / max_iterations) ** exponent`.

    Args:
        step: number of optimiser steps taken before, from 0.
        warmup: length of the warm-up in steps; 0 for none.
        max_iterations: epochs times iterations per epoch, not reduced by the warm-up.
        exponent: 0.9 in SAMed and H-SAM, 7 in SAMed_h.

    Returns:
        A factor in [0, 1].
    """
    i = max(step - 1, 0)
    if i < warmup:
        return (i + 1) / warmup
    return max(1.0 - (i - warmup) / max_iterations, 0.0) ** exponent


class WarmupPolyLR(LambdaLR):
    """`warmup_poly` for an optimiser, to be stepped after every iteration.

    Args:
        optimizer: its `lr` is the base rate.
        warmup: length of the warm-up in iterations; 0 for none.
        max_iterations: epochs times iterations per epoch.
        exponent: of the decay.

    Raises:
        ValueError: `warmup` is negative or `max_iterations` is not positive.
    """

    def __init__(self, optimizer: Optimizer, warmup: int, max_iterations: int, exponent: float = 0.9) -> None:
        _check(warmup, max_iterations)
        super().__init__(
            optimizer, partial(warmup_poly, warmup=warmup, max_iterations=max_iterations, exponent=exponent)
        )


class WarmupCosineLR(WarmupCosineSchedule):
    """MONAI's linear warm-up and cosine decay, to be stepped after every iteration.

    Differs from it in: the state does not hold the length of the training, so that a run which is resumed for more
    epochs follows its own cosine; MONAI's would rise again after the end of the former one.

    Args:
        optimizer: its `lr` is the highest rate.
        warmup: length of the warm-up in iterations, from a hundredth of the rate.
        max_iterations: epochs times iterations per epoch.

    Raises:
        ValueError: `warmup` is negative or `max_iterations` is not positive.
    """

    def __init__(self, optimizer: Optimizer, warmup: int, max_iterations: int) -> None:
        _check(warmup, max_iterations)
        super().__init__(optimizer, warmup, max_iterations, warmup_multiplier=0.01)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps taken, and what else `LambdaLR` needs to load a state."""
        kept = ("last_epoch", "_step_count", "lr_lambdas")
        return {key: value for key, value in super().state_dict().items() if key in kept}


def _check(warmup: int, max_iterations: int) -> None:
    if warmup < 0 or max_iterations < 1:
        raise ValueError(
            f"warmup must be >= 0 and max_iterations >= 1, got {warmup} and {max_iterations}; "
            "max_iterations is epochs times the length of the data loader"
        )
