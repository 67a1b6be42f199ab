"""What a trained model needs beside its weights, in a small readable file: ``models/model.json`` beside ``model.pt``.

Network settings, class names and intensity scaling, so that evaluation and inference of a model need no setting to be
typed again, and cannot be given a wrong one by omission.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai.bundle

from samora_monai.errors import InputError, MissingFileError
from samora_monai.replacing import replacing


def model_in_use(checkpoint: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The model file whose network is being built: `checkpoint`, or, within `monai.bundle.load`, the file it loads.

    That function builds the network of a bundle without telling the config where the bundle is: `bundle_root` stays
    ".", so that the settings would be those of any model that lies in the current folder, or of none.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is monai.bundle.load.__code__:
            return frame.f_locals["full_path"]
        frame = frame.f_back
    return checkpoint


class Settings(dict[str, Any]):
    """Settings of a model file; one that is asked for and not there is an `InputError`.

    Args:
        path: where they are from.
        settings: their values by name.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise InputError(f"settings file '{self.path}' lacks {name!r}; restore it or train again")


def read_settings(checkpoint: str | os.PathLike[str], **defaults: Any) -> dict[str, Any]:
    """The settings of the model file `checkpoint`, from the JSON file of the same name.

    Args:
        defaults: all settings, for the time before there is a model; a model file must have its own.

    Raises:
        MissingFileError, InputError: no file, and a model file or no defaults; a damaged file; a setting that
            `defaults` does not know.
    """
    path = Path(checkpoint).with_suffix(".json")
    if not path.is_file():
        if Path(checkpoint).is_file():
            raise MissingFileError(
                f"no model settings {str(path)!r}, without which '{checkpoint}' cannot be used; training wrote both, "
                "copy both"
            )
        if not defaults:
            raise MissingFileError(
                f"no model settings {str(path)!r}; train a model first, or name one with --checkpoint"
            )
        return defaults
    try:
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"expected an object, got {type(settings).__name__}")
    except ValueError as e:  # of JSON and of UTF-8 too
        raise InputError(f"settings file {str(path)!r} is damaged ({e}); restore it or train again") from e
    unknown = sorted(set(settings) - set(defaults))
    if defaults and unknown:
        raise InputError(f"settings file {str(path)!r} has unknown settings {unknown}; expected {sorted(defaults)}")
    return Settings(path, settings)


def write_settings(checkpoint: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Writes `settings` beside the model file `checkpoint`, atomically."""
    with replacing(Path(checkpoint).with_suffix(".json")) as unfinished:
        unfinished.write_text(json.dumps(dict(settings), indent=1) + "\n")
