"""Reading and writing weight files: never executing code, never half-written, wrong files named."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor, nn

from samora_monai.errors import InputError, MissingFileError

Source = Union[str, "os.PathLike[str]", Mapping[str, Any]]


@dataclass
class LoadReport:
    """What a load did with every tensor, by state-dict key of the network (`dropped`: of the file)."""

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
    """Reads a checkpoint on the CPU, with ``weights_only=True``.

    Returns:
        its content and the name to call it by in messages.

    Raises:
        MissingFileError: there is no such file.
        InputError: it is truncated, not a checkpoint, not a dict, or wants to execute code.
    """
    if isinstance(source, Mapping):
        return dict(source), "the given state dict"
    path = Path(source)
    if not path.is_file():
        raise MissingFileError(f"no checkpoint {str(path)!r}; check the path or download it first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        reason = str(e).split("\n")[0]
        if "Unsupported global" in str(e) or "weights_only" in str(e).lower():
            raise InputError(
                f"checkpoint {str(path)!r} holds code objects, which could run anything when loaded; "
                "expected tensors only: save its plain state_dict where you trust it, and give that file"
            ) from e
        raise InputError(f"checkpoint {str(path)!r} is damaged or no PyTorch file ({reason}); get it again") from e
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as e:
        reason = " ".join(str(e).split())[:120]
        raise InputError(f"checkpoint {str(path)!r} is damaged or no PyTorch file ({reason}); get it again") from e
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {str(path)!r} holds a {type(content).__name__}; expected a dict of tensors")
    return content, repr(path.name)


def write_checkpoint(content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a checkpoint atomically: the file is whole or not there."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as e:
        raise InputError(f"cannot write {str(path)!r}: {e.strerror or e}; choose a writable folder") from e
    try:
        with os.fdopen(handle, "wb") as stream:
            torch.save(content, stream)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def copy_strictly(net: nn.Module, state: Mapping[str, Any], wanted: list[str], name: str, remedy: str) -> list[str]:
    """Copies exactly the tensors `wanted` from `state` (no fewer, no more, same shapes) into `net`.

    Raises:
        InputError: names the file, the first keys concerned, the shapes and the remedy; nothing is changed then.
    """
    target = net.state_dict()
    missing = [k for k in wanted if k not in state]
    unexpected = [k for k in state if k not in set(wanted)]
    if missing or unexpected:
        what = [f"{len(keys)} keys {word} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
                for word, keys in (("missing", missing), ("not expected", unexpected)) if keys]  # fmt: skip
        raise InputError(f"checkpoint {name} does not fit: {' and '.join(what)}; {remedy}")
    for key in wanted:
        if not isinstance(state[key], Tensor) or state[key].shape != target[key].shape:
            got = list(state[key].shape) if isinstance(state[key], Tensor) else type(state[key]).__name__
            raise InputError(
                f"checkpoint {name} does not fit: {key} is {got}, expected {list(target[key].shape)}; {remedy}"
            )
    with torch.no_grad():
        for key in wanted:
            target[key].copy_(state[key])
    return wanted


def sha256_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and float32 values of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_parts(source: Source, kind: str) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Reads one of our own ``{"state_dict", "meta"}`` files and checks its kind and its checksum.

    Returns:
        tensors, the decoded meta, and the file's name for messages.
    """
    content, name = read_checkpoint(source)
    if set(content) != {"state_dict", "meta"}:
        found = ", ".join(list(content)[:3])
        raise InputError(f"checkpoint {name} is no {kind} file: expected 'state_dict' and 'meta', found {found}, ...")
    meta = json.loads(content["meta"])
    if meta.get("kind") != kind:
        raise InputError(f"checkpoint {name} is a {meta.get('kind')} file, expected a {kind} file")
    if meta.get("sha256") != sha256_of(content["state_dict"]):
        raise InputError(f"{kind} file {name} is damaged: its tensors do not match their checksum; get it again")
    return content["state_dict"], meta, name


def check_meta(name: str, meta: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises an InputError for the first field of `meta` that is not as the network has it."""
    for key, value in expected.items():
        found = meta.get(key)
        if found != value:
            short = [str(v)[:12] + "..." if key == "base_sha256" else v for v in (found, value)]
            raise InputError(
                f"{meta['kind']} file {name} was made for {key} {short[0]} but the network has {short[1]}; "
                + (
                    "load the SAM checkpoint it was trained on first"
                    if key == "base_sha256"
                    else f"build it with {key} {short[0]}"
                )
            )
