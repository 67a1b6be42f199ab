"""Whether weights fit, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def misfit(expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> str:
    """What keeps `found` from taking the place of `expected`: its keys, or else the first shape; nothing if it fits."""
    keys = {
        "missing": [key for key in expected if key not in found],
        "not expected": [key for key in found if key not in expected],
    }
    if any(keys.values()):
        return " and ".join(
            f"{len(names)} keys {word} ({', '.join(map(str, names[:3]))}{', ...' if len(names) > 3 else ''})"
            for word, names in keys.items()
            if names
        )
    for key, value in expected.items():
        shape = getattr(found[key], "shape", None)
        if shape != value.shape:
            got = list(shape) if shape is not None else type(found[key]).__name__
            return f"{key} is {got}, expected {list(value.shape)}"
    return ""
