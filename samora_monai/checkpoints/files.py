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

from samora_monai import __version__
from samora_monai.errors import InputError, MissingFileError
from samora_monai.replacing import replacing
from samora_monai.strict import misfit

_FORMATS = {"expert": 2, "adapter": 1, "teacher": 1}  # the newest format of each kind of file; older ones can be read
Source = Union[str, "os.PathLike[str]", Mapping[str, Any]]
Parts = tuple[dict[str, Tensor], dict[str, Any], str]  # tensors, decoded meta, name for error messages


@dataclass
class LoadReport:
    """What a load did with each tensor, by its key in the network (`dropped`: in the file)."""

    source: str
    copied: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.source}: copied {len(self.copied)}"
        for verb, keys in (("resized", self.resized), ("kept as initialised", self.kept), ("dropped", self.dropped)):
            first = f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""
            text += f"; {verb} {len(keys)}{first}"
        return text


def read_checkpoint(source: Source) -> tuple[dict[str, Any], str]:
    """Read the content of a checkpoint, without executing code from it, and the file's name for error messages."""
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
    except Exception as e:  # the unpickler raises errors of a dozen types for bytes that are no checkpoint
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
    """Raise an `InputError` unless each record of a checkpoint matches its CRC-32, which `torch.load` does not check.

    Files without checksums pass: those of torch before 1.6 are no zip files, and those written under
    `torch.serialization.set_crc32_options(False)` have 0 everywhere.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(record.CRC for record in archive.infolist()) and (damaged := archive.testzip()):
            file = f"checkpoint {str(path)!r}"
            raise InputError(f"{file} is damaged: {damaged} does not match its checksum; get it again")


def read_state(source: Source) -> tuple[dict[str, Tensor], str]:
    """Read the weights of a network from a file of this package, SAM, SAMed, H-SAM or another project.

    Returns:
        tensors by flat keys (`{"resnet": {"a": ...}}` gives `resnet.a`), without the prefix `module.` of DataParallel,
        from the `"model"` entry of a training checkpoint; and the name of the file for error messages.
    """
    content, name = read_checkpoint(source)
    if meta := _own_meta(content):
        raise InputError(f"checkpoint {name} is {_file_of(meta['kind'])}; expected the weights of a network")
    return _flat(content, name), name


def read_parts(source: Source, kind: str, foreign: bool = False) -> Parts:
    """Read a file of `write_parts`, and check its kind, format and checksum.

    With `foreign`, files of other projects are read too, as by `read_state`; their meta is empty.
    """
    content, name = read_checkpoint(source)
    meta = _own_meta(content)
    if not meta and foreign:
        return _flat(content, name), meta, name
    if not meta:
        found = ", ".join(map(str, list(content)[:3]))
        raise InputError(f"checkpoint {name} ({found}, ...) is no {kind} file or a damaged one; give one of ours")
    if meta["kind"] != kind:
        raise InputError(f"checkpoint {name} is {_file_of(meta['kind'])}; expected {_file_of(kind)}")
    if (version := meta.get("format_version")) not in range(1, _FORMATS[kind] + 1):
        raise InputError(f"{kind} file {name} has format {version}, expected {_FORMATS[kind]}; update samora_monai")
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


def write_parts(kind: str, state: Mapping[str, Tensor], meta: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write an expert, adapter or teacher file: `{"state_dict": {...}, "meta": "<one JSON string>"}`.

    The meta also gets the kind, its format, the SHA-256 of the tensors and the version of this package.
    """
    state = {key: value.cpu().clone() for key, value in state.items()}
    own = {"kind": kind, "format_version": _FORMATS[kind], "sha256": sha256_of(state), "package_version": __version__}
    assert not own.keys() & meta.keys(), f"the file's own fields cannot be given: {sorted(own.keys() & meta.keys())}"
    write_checkpoint({"state_dict": state, "meta": json.dumps({**meta, **own})}, path)


def write_checkpoint(content: Any, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint atomically, or raise an `InputError`; after a failure the previous file is still there."""
    try:
        with replacing(path) as unfinished, open(unfinished, "wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except (OSError, RuntimeError) as e:
        cause = e if isinstance(e, OSError) else e.__context__  # torch's own error replaces that of a full disk
        if not isinstance(cause, OSError):
            raise
        raise InputError(f"cannot write {str(path)!r}: {cause.strerror or cause}; choose a writable folder") from e


def copy_strictly(net: nn.Module, state: Mapping[str, Tensor], wanted: list[str], name: str, remedy: str) -> list[str]:
    """Copy the tensors `wanted`, and return their keys; `state` must hold these, no others, in the same shapes.

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
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_meta(name: str, meta: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare the meta of the file `name` with the values of the network; files before `windows` have none.

    Raises:
        InputError: names the first field that differs.
    """
    fields = [key for key in expected if key in meta or key != "windows"]
    key = next((key for key in fields if meta.get(key) != expected[key]), None)
    if key is None:
        return
    file, found, value = f"{meta['kind']} file {name}", meta.get(key), expected[key]
    if key == "level":
        raise InputError(f"{file} is of level {found}; expected one of level {value}")
    remedy = f"build it with {'encoder' if key == 'preset' else key} {found}"
    if key == "base_sha256":
        found, value = f"{str(found)[:12]}...", f"{value[:12]}..."
        remedy = "load the SAM checkpoint it was trained on first"
    raise InputError(f"{file} was made for {key} {found} but the network has {value}; {remedy}")
