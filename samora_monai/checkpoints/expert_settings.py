"""The settings of a trained expert, kept in the meta of its file, so that its inference needs none of them again.

Format 2 of expert files holds the fields of `ExpertSettings`, those of its `ScanScaling` among them. Format 1, of the
first release, holds level, rank, preset, image size and teacher; a file `expert.json` beside it holds the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from samora_monai.checkpoints.files import check_meta, read_parts
from samora_monai.data.scaling import ScanScaling
from samora_monai.errors import InputError
from samora_monai.networks.config import PRESETS, SegmenterConfig

EXPERT_FORMAT = 2


@dataclass(frozen=True)
class ExpertSettings:
    """What an expert was trained with.

    To add a setting, add a field whose default is the behaviour of experts that were saved before it existed.

    Args:
        level: `"image"`, `"patch"` or `"pixel"`.
        encoder, image_size, rank: of the network, see `SegmenterConfig`.
        teacher: name and file of the teacher; None for the pixel level.
        scaling: how scans are scaled.
        array_key, array_slice_axis: how arrays are read, see `LoadUnlabeledd`.
        noise: pixel level: the highest standard deviation of the noise.
        decoder_features: pixel level: `feature_size` of the `DenoisingStudent`.

    Raises:
        InputError: a setting of the network is out of range.
    """

    level: str
    encoder: str | dict[str, Any] = "vit_b"
    image_size: int = 224
    rank: int = 4
    teacher: str | None = None
    scaling: ScanScaling = field(default_factory=ScanScaling)
    array_key: str = "image"
    array_slice_axis: int | None = None
    noise: float = 0.1
    decoder_features: int = 32

    def __post_init__(self) -> None:
        _ = self.network  # checks its settings

    @property
    def network(self) -> SegmenterConfig:
        """The network that the expert is part of."""
        return SegmenterConfig(self.encoder, self.image_size, experts=(self.level,), rank=self.rank)

    def as_dict(self) -> dict[str, Any]:
        """The flat form: the fields of the scaling among the others."""
        values = asdict(self)
        unused = () if self.level == "pixel" else ("noise", "decoder_features")
        return {name: value for name, value in (values | values.pop("scaling")).items() if name not in unused}


_SCALING = tuple(f.name for f in fields(ScanScaling))
_OTHERS = tuple(f.name for f in fields(ExpertSettings) if f.name != "scaling")


def read_expert_settings(expert: str | os.PathLike[str], level: str, **changes: Any) -> ExpertSettings:
    """Read the settings of the expert file `expert`; without such a file, the default settings of `level`.

    Args:
        changes: other values for some settings, e.g. `modality="MR"`.

    Raises:
        InputError: a file of something else, damaged, of another level, or with a setting unknown or out of range.
    """
    if unknown := changes.keys() - {*_SCALING, *_OTHERS}:
        raise InputError(
            f"unknown setting {min(unknown)!r} of an expert; expected one of {', '.join(_OTHERS + _SCALING)}"
        )
    values = _read(Path(expert), level) | changes
    scaling = ScanScaling(**{key: values[key] for key in _SCALING if key in values})
    return ExpertSettings(**{key: values[key] for key in _OTHERS if key in values}, scaling=scaling)


def _read(path: Path, level: str) -> dict[str, Any]:
    if not path.is_file():
        return {"level": level}
    _, meta, name = read_parts(path, "expert", newest=EXPERT_FORMAT)
    check_meta(name, meta, {"level": level})
    if meta["preset"] in PRESETS:
        meta = {"encoder": meta["preset"]} | meta
    if meta["format_version"] == 1:
        meta |= _beside(path)
    return meta


def _beside(path: Path) -> Mapping[str, Any]:
    """The content of the JSON file beside an expert file of format 1, if there is one."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        content = json.loads(beside.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, got {type(content).__name__}")
    except ValueError as e:  # of JSON and of UTF-8 too
        raise InputError(f"settings file {str(beside)!r} is damaged ({e}); restore it or train again") from e
    return content
