"""Strict loading of state dicts: every key and shape fits, or nothing changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from samora_monai.errors import InputError


class StrictlyLoaded(nn.Module):
    """A module that loads a complete state dict or none.

    Differs from `nn.Module` in: `strict=False` has no effect. MONAI Label passes it for every file, and would serve
    random weights wherever a key is missing. A refused state dict changes nothing, and the error is one line.
    """

    def describe(self) -> str:
        """A name of the network for error messages."""
        return type(self).__name__

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As `nn.Module.load_state_dict` with `strict=True`, whatever `strict` is.

        Raises:
            InputError: a key is missing, unexpected, or of another shape; the message names the first of them.
        """
        if problem := misfit(self.state_dict(), state_dict):
            raise InputError(
                f"the weights do not fit the network ({self.describe()}): {problem}; "
                "give the model.pt that was written with the settings in the model.json beside it"
            )
        return super().load_state_dict(state_dict, strict=True, assign=assign)


def misfit(expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> str:
    """Describe why `found` cannot replace `expected`: its keys, or else the first shape; an empty string if it fits."""
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
