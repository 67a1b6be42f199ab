"""Teacher files: a teacher trained on the user's scans, and facts about its training; descriptions of other files.

`load_simclr` and `load_mae` read the public checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from samora_monai.checkpoints.files import LoadReport, Parts, Source, check_meta, copy_strictly, write_parts
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


class Teacher(Protocol):
    """The interface of `SimCLRTeacher` and `MAETeacher`, beside that of a module."""

    method: str  # "simclr" or "mae"
    preset: str
    public_checkpoint: str  # the public file that fits, and its source

    def load_weights(self, source: Source) -> LoadReport: ...

    def state_dict(self) -> dict[str, Tensor]: ...


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
    """Load a teacher file, or the public checkpoint of its method, into `net`.

    Raises:
        MissingFileError: `source` is None, `"none"`, or no file; the message explains how to get a teacher.
        InputError: a file of something else, of another size, or damaged.
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


def load_own(net: nn.Module, parts: Parts, method: str, preset: str) -> LoadReport:
    """Load the parts of a file of `save_teacher` into a teacher of the same method and preset."""
    state, meta, name = parts
    found = _METHODS.get(meta.get("method", ""), "unknown")
    if meta.get("method") != method:
        raise InputError(f"teacher file {name} is of method {found}; expected one of {_METHODS[method]}")
    check_meta(name, meta, {"preset": preset})
    copied = copy_strictly(net, state, list(net.state_dict()), name, "the teacher was built from other sizes")
    return LoadReport(name, copied=copied)


def describe_weights(state: Mapping[str, Tensor]) -> str:
    """Describe a file of another kind for an error message, e.g. `"a SAM checkpoint or a segmentation model"`."""
    for key, kind in _KINDS.items():
        if key in state:
            return kind
    first = ", ".join(list(state)[:3])
    return f"a file of something else ({first}, ...)" if state else "empty"
