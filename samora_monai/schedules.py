"""Learning rates with a linear warm-up: SAMed's polynomial decay (https://github.com/hitachinsk/SAMed) and a cosine."""

from __future__ import annotations

from functools import partial
from typing import Any

from monai.optimizers import WarmupCosineSchedule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_poly(step: int, *, warmup: int, max_iterations: int, exponent: float) -> float:
    """Return the factor in [0, 1] on the base rate in optimiser step `step`, counted from 0.

    With i = max(step - 1, 0): `(i + 1) / warmup` while i < warmup, then
    `(1 - (i - warmup) / max_iterations) ** exponent`. SAMed's `trainer.py` sets the rate after each step, so that the
    first rate lasts two steps.
    """
    i = max(step - 1, 0)
    if i < warmup:
        return (i + 1) / warmup
    return max(1.0 - (i - warmup) / max_iterations, 0.0) ** exponent


class WarmupPolyLR(LambdaLR):
    """SAMed's schedule (`warmup_poly`), to be stepped after every iteration.

    Args:
        optimizer: its `lr` is the base rate.
        warmup: length of the warm-up in iterations; 0 for none.
        max_iterations: epochs times iterations per epoch, not reduced by the warm-up.
        exponent: of the decay; 0.9 in SAMed and H-SAM, 7 in SAMed_h.

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

    Differs from it in: the state does not hold the length of the training, so that a run that is resumed for more
    epochs follows its own cosine; MONAI's would rise again after the former end.

    Args and errors are those of `WarmupPolyLR`; the warm-up starts at a hundredth of the rate.
    """

    def __init__(self, optimizer: Optimizer, warmup: int, max_iterations: int) -> None:
        _check(warmup, max_iterations)
        super().__init__(optimizer, warmup, max_iterations, warmup_multiplier=0.01)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps taken, and what else `LambdaLR` needs to load a state."""
        kept = ("last_epoch", "_step_count", "lr_lambdas")
        return {key: value for key, value in super().state_dict().items() if key in kept}


def _check(warmup: int, max_iterations: int) -> None:
    if warmup < 0 or max_iterations < 1:
        raise ValueError(
            f"warmup must be >= 0 and max_iterations >= 1, got {warmup} and {max_iterations}; "
            "max_iterations is epochs times the length of the data loader"
        )
