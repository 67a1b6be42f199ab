"""Expert files: one low-rank expert of the encoder, under 1 MB, and the settings that it was trained with.

Keys (`blocks.0.linear_a_q.weight`) carry no level, so that a file fits any slot of any network on the same base. The
meta holds the settings, so that inference needs none of them again: in format 2 the fields of `ExpertSettings`, those
of its `ScanScaling` among them; in format 1, of the first release, level, rank, preset, image size and teacher, while
a file `expert.json` beside it holds the rest.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samora_monai.checkpoints.files import (
    LoadReport,
    Source,
    check_meta,
    copy_strictly,
    read_parts,
    sha256_of,
    write_parts,
)
from samora_monai.checkpoints.model_settings import fields_of, read_json
from samora_monai.checkpoints.sam import base_keys, preset_name, window_sides
from samora_monai.data.scaling import ScanScaling
from samora_monai.errors import InputError
from samora_monai.networks.config import PRESETS, SegmenterConfig
from samora_monai.networks.segmenter import Segmenter


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

    `changes` are other values for some settings, e.g. `modality="MR"`.
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


def base_sha256(net: Segmenter) -> str:
    """Hash the base encoder without SAM's position tables, whose size depends on the input's; SAM 2's does not."""
    state, hashed = net.state_dict(), re.compile(r"image_encoder\.(?!pos_embed|.*rel_pos_[hw]$)")
    return sha256_of({key: state[key] for key in base_keys(net) if hashed.match(key)})


def _keys(net: Segmenter, level: str) -> dict[str, str]:
    """Map the keys in a file to those of the expert of `level`, or of the only expert of the network."""
    experts = net.image_encoder.experts
    if level not in experts and len(experts) != 1:
        raise InputError(f"the network has no expert {level!r}, only {experts}; build it with this expert")
    slot = level if level in experts else experts[0]
    pattern = re.compile(rf"image_encoder\.(?:trunk\.)?(blocks\.\d+)\.attn\.experts\.{re.escape(slot)}\.(.*)")
    return {f"{m[1]}.{m[2]}": key for key in net.state_dict() if (m := pattern.fullmatch(key))}


def _made_for(net: Segmenter) -> dict[str, Any]:
    encoder = {"preset": preset_name(net), "windows": window_sides(net)}
    return encoder | {"rank": net.image_encoder.rank, "base_sha256": base_sha256(net)}


def save_expert(
    net: Segmenter,
    path: str | os.PathLike[str],
    level: str,
    teacher: str | None = None,
    base_sha256_before: str | None = None,
    settings: ExpertSettings | None = None,
) -> None:
    """Write the expert of `level`, or the only expert of the network, to a file.

    Args:
        teacher: the teacher of an expert without `settings`.
        base_sha256_before: `base_sha256` before the training, which must not change it.
        settings: what the expert was trained with, which its inference reads from the file.

    Raises:
        RuntimeError: the base has changed.
    """
    state = net.state_dict()
    made_for = _made_for(net)
    if base_sha256_before not in (None, made_for["base_sha256"]):
        raise RuntimeError(f"the base encoder changed while the {level} expert trained; no expert file was written")
    meta = settings.as_dict() if settings else {"teacher": teacher}
    meta |= made_for | {
        "base_sha256_before": base_sha256_before,
        "level": level,
        "alpha": made_for["rank"],  # delta = alpha / rank * B A, and SAMed has no such factor
        "targets": ["q", "v"],
        "blocks": sum(net.image_encoder.stages),
        "image_size": net.image_size,
    }
    write_parts("expert", {name: state[key] for name, key in _keys(net, level).items()}, meta, path)


def load_expert(net: Segmenter, source: Source, level: str) -> LoadReport:
    """Load an expert file into the slot `level` of `net`, whose base must be loaded already.

    Blocks in which the network has another expert alone (see `fused_part`) are dropped.
    """
    keys = _keys(net, level)
    state, meta, name = read_parts(source, "expert")
    check_meta(name, meta, {"level": level, **_made_for(net)})
    blocks = enumerate(net.image_encoder.encoder_blocks())
    others = {f"blocks.{i}" for i, block in blocks if net.image_encoder.fusion and not block.fusion}
    dropped = [key for key in state if key not in keys and key.rsplit(".", 2)[0] in others]
    ours = {keys.get(key, key): value for key, value in state.items() if key not in dropped}
    copied = copy_strictly(net, ours, list(keys.values()), name, "the expert has other blocks")
    return LoadReport(name, copied=copied, dropped=dropped)
