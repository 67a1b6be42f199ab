"""The settings of a trained expert, kept in the meta of its file, so that its inference needs none of them again.

Format 2 of expert files holds the fields of `ExpertSettings`, those of its `ScanScaling` among them. Format 1, of the
first release, holds level, rank, preset, image size and teacher; a file `expert.json` beside it holds the rest.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samora_monai.checkpoints.files import check_meta, read_parts
from samora_monai.checkpoints.model_settings import fields_of, read_json
from samora_monai.data.scaling import ScanScaling
from samora_monai.errors import InputError
from samora_monai.networks.config import PRESETS, SegmenterConfig


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


def read_expert_settings(expert: str | os.PathLike[str], level: str, **changes: Any) -> ExpertSettings:
    """Read the settings of the expert file `expert`; without such a file, the default settings of `level`.

    Args:
        changes: other values for some settings, e.g. `modality="MR"`.

    Raises:
        InputError: a file of something else, damaged, of another level, or with a setting unknown or out of range.
    """
    known = ExpertSettings("pixel").as_dict()
    if unknown := changes.keys() - known:
        raise InputError(f"unknown setting {min(unknown)!r} of an expert; expected one of {', '.join(known)}")
    path = Path(expert)
    values: dict[str, Any] = {"level": level}
    if path.is_file():
        _, values, name = read_parts(path, "expert")
        check_meta(name, values, {"level": level})
        if values["preset"] in PRESETS:
            values = {"encoder": values["preset"]} | values
        if values["format_version"] == 1 and path.with_suffix(".json").is_file():
            values |= read_json(path.with_suffix(".json"))
    values |= changes
    scaling = ScanScaling(**fields_of(ScanScaling, values))
    return ExpertSettings(**fields_of(ExpertSettings, values) | {"scaling": scaling})
