"""Teacher files: a teacher continued on the user's scans, with what it was made of; and what other files look like.

``{"state_dict": {...}, "meta": "<one JSON string>"}`` of kind "teacher", as expert files are. The public checkpoints
are read by the teachers themselves (`load_simclr`, `load_mae`), which know their layouts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from samora_monai import __version__
from samora_monai.checkpoints.files import (
    FORMAT_VERSION,
    LoadReport,
    Parts,
    Source,
    check_meta,
    copy_strictly,
    sha256_of,
    write_checkpoint,
)
from samora_monai.errors import InputError, MissingFileError

_METHODS = {"simclr": "SimCLR", "mae": "MAE"}
# A key that only this kind of file has -> what to call the file. The first that is found counts.
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
    """What `SimCLRTeacher` and `MAETeacher` have in common, beside being modules."""

    method: str  # "simclr" or "mae"
    preset: str
    public_checkpoint: str  # which public file fits, and where it is from

    def load_weights(self, source: Source) -> LoadReport: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def save_teacher(net: Teacher, path: str | os.PathLike[str], **meta: Any) -> None:
    """Writes a teacher, and what it was made of.

    Args:
        meta: more to keep in the file, e.g. ``images``, ``epochs``, ``started_from``; numbers, strings, lists of them.

    Raises:
        InputError: the file cannot be written.
    """
    state = {key: value.cpu().clone() for key, value in net.state_dict().items()}
    own = {
        "kind": "teacher",
        "format_version": FORMAT_VERSION,
        "method": net.method,
        "preset": net.preset,
        "sha256": sha256_of(state),
        "package_version": __version__,
    }
    assert not own.keys() & meta.keys(), f"the file's own fields cannot be given: {sorted(own.keys() & meta.keys())}"
    write_checkpoint({"state_dict": state, "meta": json.dumps(meta | own)}, path)


def load_teacher(net: Teacher, source: str | None) -> LoadReport:
    """Loads a teacher file, or the public checkpoint of its method, into `net`.

    Raises:
        MissingFileError: `source` is None, ``"none"``, or no file; the message says how to get a teacher.
        InputError: a file of something else, of another size, or damaged.
    """
    how = (
        "a random teacher teaches nothing. Continue one on your scans, python -m monai.bundle run teacher "
        "--config_file configs/teacher.yaml --dataset_dir DIR, or name a file with --teacher_checkpoint FILE, "
        f"e.g. the public {net.public_checkpoint}"
    )
    if source is None or source in ("", "none"):
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
    """What a foreign file is, for a refusal: ``"a SAM checkpoint or a segmentation model"``."""
    for key, kind in _KINDS.items():
        if key in state:
            return kind
    first = ", ".join(list(state)[:3])
    return f"a file of something else ({first}, ...)" if state else "empty"
