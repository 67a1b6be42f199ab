"""How settings of configs and command lines are read: switches, numbers, and files that may be left out."""

from __future__ import annotations

import math
from typing import Any

from samora_monai.errors import InputError


def flag(value: bool | str, name: str = "a switch") -> bool:
    """Return a switch as a bool; `--resume false` arrives as the text `"false"`.

    Raises:
        InputError: the value is neither true nor false.
    """
    text = str(value).lower()
    if text not in ("true", "false"):
        raise InputError(f"expected true or false for {name}, got {value!r}")
    return text == "true"


def file_or_none(value: str | None) -> str | None:
    """Return the path of a file, or None for None, an empty text, and `none` or `null` in any case."""
    return None if value is None or str(value).lower() in ("", "none", "null") else str(value)


def is_whole(value: Any, at_least: int | float = -math.inf) -> bool:
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


def check_positive(**settings: Any) -> None:
    """Check that each setting is a finite number above 0.

    Raises:
        InputError: one is not.
    """
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f"{name} must be a number above 0, got {value!r}; give --{name} X")
