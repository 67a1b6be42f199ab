"""Settings of configs and command lines: switches, numbers in their range, optional files."""

from __future__ import annotations

import math
from typing import Any

from samora_monai.errors import InputError

# The smallest value of each whole number
_COUNTS = {
    **dict.fromkeys(("epochs", "batch_size", "val_interval", "slices_per_pass", "decoder_features"), 1),
    **dict.fromkeys(("warmup", "num_workers", "seed"), 0),
}
# Whether each other number may be 0
_NUMBERS = {
    **dict.fromkeys(("learning_rate", "expert_rate", "max_gradient_norm", "noise", "temperature"), False),
    **dict.fromkeys(("weight_decay", "dice_weight", "anchor"), True),
}
_FRACTIONS = ("unlabeled_weight", "confidence", "ramp_up")  # from 0 to 1
_OPTIONAL = ("max_gradient_norm",)  # may be None


def flag(value: bool | str, name: str = "a switch") -> bool:
    """Return a switch as a bool; `--resume false` arrives as the text `"false"`.

    Raises:
        InputError: the value is neither true nor false.
    """
    text = str(value).lower()
    if text not in ("true", "false"):
        raise InputError(f"expected true or false for {name}, got {value!r}")
    return text == "true"


def amp_choice(amp: bool | str) -> bool | None:
    """Return whether bfloat16 was asked for; None for `"auto"`, which leaves the choice to the run.

    Raises:
        InputError: `amp` is none of true, false and auto.
    """
    text = str(amp).lower()
    if text not in ("auto", "true", "false"):
        raise InputError(f"amp must be auto, true or false, got {amp!r}; give --amp auto")
    return None if text == "auto" else text == "true"


def file_or_none(value: str | None) -> str | None:
    """Return the path of a file, or None for None, an empty text, and `none` or `null` in any case."""
    return None if value is None or str(value).lower() in ("", "none", "null") else str(value)


def is_whole(value: Any, at_least: float = -math.inf) -> bool:
    """Whether `value` is a whole number (no bool) of at least `at_least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def check_counts(at_least: int = 1, **settings: Any) -> None:
    """Check that each setting is a whole number of at least `at_least`.

    Raises:
        InputError: one is not.
    """
    for name, value in settings.items():
        if not is_whole(value, at_least):
            raise InputError(f"{name} must be a whole number of at least {at_least}, got {value!r}; give --{name} N")


def check_run_settings(**settings: Any) -> None:
    """Check tunables by their names, e.g. `epochs=100, learning_rate=0.005`.

    Raises:
        InputError: one is out of range.
        KeyError: a name has no rule here.
    """
    for name, value in settings.items():
        if name in _COUNTS:
            check_counts(_COUNTS[name], **{name: value})
            continue
        if name in _OPTIONAL and value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _FRACTIONS:
            if not number or not 0 <= value <= 1:
                raise InputError(f"{name} must be a number from 0 to 1, got {value!r}; give --{name} X")
            continue
        zero = _NUMBERS[name]
        if not number or not (0 < value < math.inf or (zero and value == 0)):
            expected = "of at least 0" if zero else "above 0"
            raise InputError(f"{name} must be a number {expected}, got {value!r}; give --{name} X")
