"""The four bundles: beside the package in a checkout, inside the package in a wheel (see setup.py)."""

from __future__ import annotations

from pathlib import Path

from samora_monai.errors import MissingFileError

_FOLDERS = (Path(__file__).with_suffix(""), Path(__file__).parents[1] / "bundles")


def bundle_path(name: str) -> Path:
    """Find the folder of the bundle `name`, e.g. `"samora_segmentation"`; copy it before you train in it.

    Raises:
        MissingFileError: there is no such bundle.
    """
    for folder in _FOLDERS:
        if (folder / name / "configs" / "metadata.json").is_file():
            return folder / name
    found = sorted({path.parts[-3] for folder in _FOLDERS for path in folder.glob("*/configs/metadata.json")})
    raise MissingFileError(
        f"no bundle {name!r}; choose one of {', '.join(found) or 'none: install samora_monai again'}"
    )
