"""Read and write weight files: no code in a file is executed, no file is left half-written, damage is detected."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor, nn

from samora_monai.errors import InputError, MissingFileError
from samora_monai.replacing import replacing
from samora_monai.strict import misfit

_CHUNK = 1 << 20  # bytes
FORMAT_VERSION = 1  # of our expert and adapter files
Source = Union[str, "os.PathLike[str]", Mapping[str, Any]]
Parts = tuple[dict[str, Tensor], dict[str, Any], str]  # tensors, meta, name for messages


@dataclass
class LoadReport:
    """What a load did with each tensor, by its key in the network (`dropped`: in the file)."""

    source: str
    copied: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def brief(verb: str, keys: list[str]) -> str:
            return f"{verb} {len(keys)}" + (
                f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""
            )

        parts = [f"copied {len(self.copied)}"]
        parts += [
            brief("resized", self.resized),
            brief("kept as initialised", self.kept),
            brief("dropped", self.dropped),
        ]
        return f"{self.source}: {'; '.join(parts)}"


def read_checkpoint(source: Source) -> tuple[dict[str, Any], str]:
    """Read a checkpoint on the CPU with `weights_only=True`, after a check of its checksums.

    Returns:
        the content, and the name of the file for messages.

    Raises:
        MissingFileError: there is no such file.
        InputError: it is damaged, not a checkpoint, not a dict, or contains code.
    """
    if isinstance(source, Mapping):
        return dict(source), "the given state dict"
    path = Path(source)
    if not path.is_file():
        raise MissingFileError(f"no checkpoint {str(path)!r}; check the path or download it first")
    try:
        check_checksums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except PermissionError as e:
        raise InputError(f"checkpoint {str(path)!r} may not be read; change its permissions") from e
    except Exception as e:  # the unpickler reports bytes that are no checkpoint with errors of a dozen types
        if code := re.search(r"[Uu]nsupported (?:global: )?(?:GLOBAL|class) \S+|TorchScript", str(e)):
            raise InputError(
                f"checkpoint {str(path)!r} holds code objects ({code[0].split()[-1]}), which could run anything when "
                "loaded; expected tensors only: save its plain state_dict where you trust it, and give that file"
            ) from e
        raise InputError(f"checkpoint {str(path)!r} is damaged or no PyTorch file; get it again") from e
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {str(path)!r} holds a {type(content).__name__}; expected a dict of tensors")
    return content, repr(path.name)


def check_checksums(path: str | os.PathLike[str]) -> None:
    """Compare each record of a checkpoint with its CRC-32, which `torch.load` does not.

    Two kinds of files have no checksums and pass: those of torch before 1.6, which are no zip files, and those written
    under `torch.serialization.set_crc32_options(False)`, where all are 0.

    Raises:
        InputError: names the first record that is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(record.CRC for record in archive.infolist()) and (damaged := archive.testzip()):
            raise InputError(
                f"checkpoint {str(path)!r} is damaged: {damaged} does not match its checksum; get it again"
            )


def read_state(source: Source) -> tuple[dict[str, Tensor], str]:
    """Read the weights of a network that this package, SAM, SAMed, H-SAM or another project saved.

    Returns:
        tensors by flat keys: `{"resnet": {"a": ...}}` gives `resnet.a`; of a training checkpoint its `"model"` entry;
        without the prefix `module.` of DataParallel. And the name of the file for messages.

    Raises:
        MissingFileError, InputError: as `read_checkpoint`; it is an expert, adapter or teacher file, or holds something
            else than tensors.
    """
    content, name = read_checkpoint(source)
    if meta := _own_meta(content):
        raise InputError(f"checkpoint {name} is {_file_of(meta['kind'])}; expected the weights of a network")
    return _flat(content, name), name


def read_parts(source: Source, kind: str, foreign: bool = False, newest: int = FORMAT_VERSION) -> Parts:
    """Read an expert, adapter or teacher file, `{"state_dict", "meta"}`, and check its kind, format and checksum.

    Args:
        kind: `"expert"`, `"adapter"` or `"teacher"`.
        foreign: also accept files of other projects; they are read as by `read_state` and their meta is empty.
        newest: the newest format of this kind that can be read; older ones can be read too.

    Returns:
        tensors, the decoded meta, and the name of the file for messages.
    """
    content, name = read_checkpoint(source)
    meta = _own_meta(content)
    if not meta and foreign:
        return _flat(content, name), meta, name
    if not meta:
        found = ", ".join(str(key) for key in list(content)[:3])
        raise InputError(f"checkpoint {name} ({found}, ...) is no {kind} file or a damaged one; give one of ours")
    if meta["kind"] != kind:
        raise InputError(f"checkpoint {name} is {_file_of(meta['kind'])}; expected {_file_of(kind)}")
    if (version := meta.get("format_version")) not in range(1, newest + 1):
        raise InputError(f"{kind} file {name} has format {version}, expected {newest}; update samora_monai")
    state = _tensors_only(content["state_dict"], name)
    if meta.get("sha256") != sha256_of(state):
        raise InputError(f"{kind} file {name} is damaged: its tensors do not match their checksum; get it again")
    return state, meta, name


def _file_of(kind: str) -> str:
    return f"{'a' if kind == 'teacher' else 'an'} {kind} file"


def _own_meta(content: Mapping[str, Any]) -> dict[str, Any]:
    """The meta of an expert, adapter or teacher file; empty for every other file."""
    if set(content) != {"state_dict", "meta"} or not isinstance(content["state_dict"], Mapping):
        return {}
    try:
        meta = json.loads(content["meta"])
    except (TypeError, ValueError):
        return {}
    return meta if isinstance(meta, dict) and "kind" in meta else {}


def _flat(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    if isinstance(content.get("model"), Mapping):
        content = content["model"]  # of a training checkpoint, which also holds an optimiser
    state: dict[str, Any] = {}
    for key, value in content.items():
        state |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {str(key): value}
    return _tensors_only({key.removeprefix("module."): value for key, value in state.items()}, name)


def _tensors_only(state: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"checkpoint {name} holds a {type(value).__name__} as {key!r}; expected tensors only")
    return dict(state)


def write_checkpoint(content: Any, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint atomically: after a failure the previous file is still there.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with replacing(path) as unfinished, open(unfinished, "wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as e:
        raise InputError(f"cannot write {str(path)!r}: {e.strerror or e}; choose a writable folder") from e


def copy_strictly(net: nn.Module, state: Mapping[str, Tensor], wanted: list[str], name: str, remedy: str) -> list[str]:
    """Copy the tensors `wanted` from `state` into `net`; `state` must hold these keys, no others, in the same shapes.

    Raises:
        InputError: names the file, the first keys or shapes that differ, and the remedy; `net` is unchanged.
    """
    target = net.state_dict()
    if problem := misfit({key: target[key] for key in wanted}, state):
        raise InputError(f"checkpoint {name} does not fit: {problem}; {remedy}")
    with torch.no_grad():
        for key in wanted:
            target[key].copy_(state[key])
    return wanted


def sha256_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and float32 values of tensors, sorted by name."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_meta(name: str, meta: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that `meta` has the values of the network.

    Args:
        name: of the file, for messages.
        meta: of an expert, adapter or teacher file.
        expected: value of the network by field.

    Raises:
        InputError: names the first field that differs.
    """
    for key, value in expected.items():
        found = meta.get(key)
        if found == value:
            continue
        remedy = f"build it with {key} {found}"
        if key == "base_sha256":
            found, value = (f"{str(v)[:12]}..." for v in (found, value))
            remedy = "load the SAM checkpoint it was trained on first"
        elif key == "level":
            raise InputError(f"{meta['kind']} file {name} is of level {found}; expected one of level {value}")
        raise InputError(f"{meta['kind']} file {name} was made for {key} {found} but the network has {value}; {remedy}")
