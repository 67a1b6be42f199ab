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
    Source,
    check_meta,
    copy_strictly,
    read_checkpoint,
    read_parts,
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


def read_weights(source: Source) -> tuple[dict[str, Tensor] | None, str]:
    """Reads somebody else's file flat: ``{"resnet": {"a": ...}}`` gives ``resnet.a``, a ``"model"`` entry its content.

    Returns:
        tensors, or None for a file that this package wrote (see `load_own`); and the file's name for messages.

    Raises:
        MissingFileError, InputError: no such file; damaged; it holds something else than tensors.
    """
    content, name = read_checkpoint(source)
    if set(content) == {"state_dict", "meta"}:
        return None, name
    if isinstance(content.get("model"), Mapping):
        content = dict(content["model"])  # a training checkpoint: beside the weights there is an optimiser
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        parts = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {str(key): value}
        for name_of_part, tensor in parts.items():
            if not isinstance(tensor, Tensor):
                kind = type(tensor).__name__
                raise InputError(f"checkpoint {name} holds a {kind} as {name_of_part!r}; expected tensors only")
            state[name_of_part.removeprefix("module.")] = tensor
    return state, name


def load_own(net: nn.Module, source: Source, method: str, preset: str) -> LoadReport:
    """Loads a file of `save_teacher` into a teacher of the same method and preset."""
    state, meta, name = read_parts(source, "teacher")
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
