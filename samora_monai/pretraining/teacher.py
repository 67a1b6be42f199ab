"""What the two teachers have in common: presets, their input, and teacher files.

A teacher file, `{"state_dict": {...}, "meta": "<one JSON string>"}` of kind `"teacher"`, holds a teacher trained on
the user's scans, and facts about its training.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from monai.utils import convert_to_tensor
from torch import Tensor, nn

from samora_monai.checkpoints.files import LoadReport, Source, check_meta, copy_strictly, read_parts, write_parts
from samora_monai.errors import InputError, MissingFileError
from samora_monai.settings import file_or_none

_METHODS = {"simclr": "SimCLR", "mae": "MAE"}
# A key that identifies a kind of file -> its description; the first match counts.
_KINDS = {
    "resnet.net.0.0.weight": "a converted SimCLRv2 checkpoint",
    "encoder.net.0.0.weight": "a converted SimCLRv2 checkpoint",
    "teacher.head.linear1.weight": "a checkpoint of a SimCLR teacher's training, for resuming it",
    "teacher.mask_token": "a checkpoint of an MAE teacher's training, for resuming it",
    "stem.conv1.weight": "the bare state dict of a SimCLR teacher",
    "image_encoder.patch_embed.proj.weight": "a SAM checkpoint or a segmentation model",
    "w_a_000": "a LoRA file of SAMed or H-SAM",
    "mask_token": "an MAE checkpoint",
    "cls_token": "an MAE checkpoint without decoder, or another ViT",
    "layer1.0.conv1.weight": "a torchvision ResNet",
}


class Teacher(nn.Module, ABC):
    """A frozen network whose features a student learns to predict."""

    method: ClassVar[str]  # a key of `_METHODS`
    presets: ClassVar[dict[str, dict[str, Any]]]
    public_checkpoint: ClassVar[str]  # the public file that fits, and its source
    preset: str  # name or description of the sizes
    out_dim: int  # width of the features

    @classmethod
    def find_preset(cls, preset: str | dict[str, Any]) -> dict[str, Any]:
        """Return the sizes of a preset, which is given by its name or as a dict of sizes."""
        if not isinstance(preset, str):
            return preset
        if preset not in cls.presets:
            raise InputError(
                f"unknown {_METHODS[cls.method]} preset {preset!r}; choose one of {', '.join(cls.presets)} or give a "
                "dict of sizes"
            )
        return cls.presets[preset]

    def load_weights(self, source: Source) -> LoadReport:
        """Load a teacher file, or the public checkpoint of the method, strictly.

        Raises:
            MissingFileError, InputError: no such file; damaged; of another method or system, or of another size.
        """
        state, meta, name = read_parts(source, "teacher", foreign=True)
        if not meta:
            return self.load_public(state, name)
        if (method := meta.get("method", "")) != self.method:
            found = _METHODS.get(method, "unknown")
            raise InputError(f"teacher file {name} is of method {found}; expected one of {_METHODS[self.method]}")
        check_meta(name, meta, {"preset": self.preset})
        remedy = "the teacher was built from other sizes"
        return LoadReport(name, copied=copy_strictly(self, state, list(self.state_dict()), name, remedy))

    @abstractmethod
    def load_public(self, state: Mapping[str, Tensor], name: str) -> LoadReport:
        """Load the tensors of the method's public checkpoint; `name` is that of the file, for messages."""


def three_channels(x: Tensor) -> Tensor:
    """`[B, 1 or 3, H, W]` -> `[B, 3, H, W]`, grey repeated; without metadata, which would slow down every operation."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"expected images [B, 1 or 3, H, W], got {list(x.shape)}")
    return convert_to_tensor(x, track_meta=False).expand(-1, 3, -1, -1)


def describe_weights(state: Mapping[str, Tensor]) -> str:
    """Describe a file of another kind for an error message, e.g. `"a SAM checkpoint or a segmentation model"`."""
    for key, kind in _KINDS.items():
        if key in state:
            return kind
    first = ", ".join(list(state)[:3])
    return f"a file of something else ({first}, ...)" if state else "empty"


def save_teacher(net: Teacher, path: str | os.PathLike[str], **meta: Any) -> None:
    """Write a teacher file.

    Args:
        meta: further facts for the file, e.g. `images`, `epochs`, `started_from`; numbers, strings, lists of them.

    Raises:
        InputError: the file cannot be written.
    """
    own = {"method": net.method, "preset": net.preset}
    assert not own.keys() & meta.keys(), f"the file's own fields cannot be given: {sorted(own.keys() & meta.keys())}"
    write_parts("teacher", net.state_dict(), meta | own, path)


def read_teacher(net: Teacher, source: str | None) -> LoadReport:
    """Load a trained teacher, see `Teacher.load_weights`.

    Raises:
        MissingFileError: `source` is None, `"none"`, or no file; the message explains how to get a teacher.
        InputError: as `Teacher.load_weights`.
    """
    how = (
        "a random teacher teaches nothing. Train one on your scans, python -m monai.bundle run teacher --config_file "
        "\"['configs/train.yaml','configs/teacher.yaml']\" --dataset_dir DIR, or name a file with "
        f"--teacher_checkpoint FILE, e.g. the public {net.public_checkpoint}"
    )
    if (source := file_or_none(source)) is None:
        raise MissingFileError(f"no {_METHODS[net.method]} teacher was given, and {how}")
    try:
        return net.load_weights(source)
    except MissingFileError as e:
        raise MissingFileError(f"there is no {_METHODS[net.method]} teacher {str(source)!r}, and {how}") from e
