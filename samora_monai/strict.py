"""Strict loading of state dicts: every key and shape fits, or nothing changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from samora_monai.errors import InputError


class StrictlyLoaded(nn.Module):
    """A module that loads a complete state dict or none.

    Differs from `nn.Module` in: `strict=False`, which MONAI Label passes for every file, has no effect, so that no key
    can keep a random value; a refused state dict changes nothing; the error is one line.
    """

    def describe(self) -> str:
        """A name of the network for error messages."""
        return type(self).__name__

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as `nn.Module` does with `strict=True`, whatever `strict` is.

        Raises:
            InputError: a key is missing, unexpected, or of another shape; names the first ones.
        """
        if problem := misfit(self.state_dict(), state_dict):
            raise InputError(
                f"the weights do not fit the network ({self.describe()}): {problem}; "
                "give the model.pt that was written with the settings in the model.json beside it"
            )
        return super().load_state_dict(state_dict, strict=True, assign=assign)


def misfit(expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> str:
    """Describe how the keys of `found`, or else the first shape, differ from `expected`; `""` if they do not."""
    missing = [key for key in expected if key not in found]
    unknown = [key for key in found if key not in expected]
    if missing or unknown:
        return " and ".join(
            f"{len(names)} keys {word} ({', '.join(map(str, names[:3]))}{', ...' if len(names) > 3 else ''})"
            for word, names in (("missing", missing), ("not expected", unknown))
            if names
        )
    for key, value in expected.items():
        shape = getattr(found[key], "shape", None)
        if shape != value.shape:
            got = list(shape) if shape is not None else type(found[key]).__name__
            return f"{key} is {got}, expected {list(value.shape)}"
    return ""
