"""`--tracking mlflow`, MONAI's experiment tracking, for trainers that do not decollate.

MONAI adds an `MLFlowHandler` to the trainer whose settings take the loss out of decollated output, a list with one
dictionary for each slice. Of our trainers' output, one dictionary for the batch, they make a tuple of one loss, which
MLflow does not take for a number.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from monai.handlers import MLFlowHandler

from samora_monai.errors import InputError


def require_mlflow() -> None:
    """Raises InputError where MLflow is not installed."""
    if find_spec("mlflow") is None:
        raise InputError("'--tracking mlflow' needs MLflow, which is not installed; pip install 'samora_monai[track]'")


_init = MLFlowHandler.__init__


def track_undecollated_loss() -> None:
    """From now on MONAI's handler tracks the value, where its `output_transform` gives a tuple of one value.

    The class itself is changed, for neither a config nor a subclass comes between MONAI's settings and its handler.
    """
    MLFlowHandler.__init__ = _init_unpacking  # type: ignore[method-assign]


def _init_unpacking(self: MLFlowHandler, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    transform = self.output_transform

    def value(output: Any) -> Any:
        result = transform(output)
        return result[0] if isinstance(result, tuple) and len(result) == 1 else result

    self.output_transform = value
