"""Weights that fit, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from samora_monai.errors import InputError
from samora_monai.state_dicts import misfit


class StrictlyLoaded(nn.Module):
    """A module that takes a whole state dict or nothing.

    Differs from `nn.Module` in: ``strict=False`` is no way around it. MONAI Label loads every file like that, and would
    serve random weights wherever the file has none. Nothing is changed by what is refused, and the error is one line.
    """

    def describe(self) -> str:
        """One line for people: what is built."""
        return type(self).__name__

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As `nn.Module.load_state_dict` with ``strict=True``, whatever `strict` is.

        Raises:
            InputError: a key is missing, not expected, or of another shape; names the first of them.
        """
        if problem := misfit(self.state_dict(), state_dict):
            raise InputError(
                f"the weights do not fit the network ({self.describe()}): {problem}; "
                "give the model.pt that was written with the settings in the model.json beside it"
            )
        return super().load_state_dict(state_dict, strict=True, assign=assign)
