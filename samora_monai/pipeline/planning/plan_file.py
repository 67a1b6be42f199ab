"""The file of a plan: YAML in which every value has its reason as a comment, for a person to edit."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from samora_monai.errors import InputError, MissingFileError, one_line
from samora_monai.pipeline.plan import Plan
from samora_monai.replacing import replacing

_COLUMN, _WIDTH = 36, 120  # where comments start, and where lines end
_HEAD = (
    "Settings of every run of a bundle, under the names that they have there. Edit them and go on with the same "
    "command; runs whose settings have changed are repeated, others are not. Delete this file to have it made again."
)
_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}  # paths stay whole
_SECTIONS = {
    "data": "the scans",
    "network": "the base",
    "run": "this machine, and the time",
    "stages": "the runs of the bundles",
}


def write_plan(plan: Plan, file: Path, notes: Sequence[str] = ()) -> None:
    """Write a plan, with its reasons as comments.

    Args:
        plan: the plan.
        file: the YAML file, which is replaced.
        notes: remarks about the data for the head of the file.

    Raises:
        InputError: the file cannot be written.
    """
    lines = textwrap.wrap(_HEAD, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    for note in notes:
        lines += ["#", *textwrap.wrap(note, _WIDTH, initial_indent="# - ", subsequent_indent="#   ", **_WHOLE_WORDS)]
    for section, title in _SECTIONS.items():
        lines += ["", f"# ---- {title} ".ljust(_WIDTH, "-"), f"{section}:"]
        lines += _lines(getattr(plan, section), section, plan.reasons, 1)
    try:
        with replacing(file) as unfinished:
            Path(unfinished).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write '{file}': {error.strerror or error}") from error


def read_plan(file: Path) -> Plan:
    """Read a plan that a person may have edited; comments are not read.

    Raises:
        MissingFileError: the file does not exist.
        InputError: the file is not YAML, or a setting is missing, unknown or out of range; the message names its key.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no plan '{file}'; make one with 'samora plan'") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"plan '{file}' cannot be read: {one_line(error)}; correct it or delete it") from error
    sections = content if isinstance(content, dict) else {}
    if unknown := [key for key in sections if key not in _SECTIONS]:
        raise InputError(f"plan '{file}' has an unknown section '{unknown[0]}'; expected {', '.join(_SECTIONS)}")
    if missing := [key for key in _SECTIONS if key not in sections]:
        raise InputError(f"plan '{file}' lacks the section '{missing[0]}'; delete the file to have it made again")
    try:
        return Plan(**_with_numbers(sections))
    except InputError as error:
        raise InputError(f"in plan '{file}', {error}") from error


def _lines(settings: Mapping[str, Any], section: str, reasons: Mapping[str, str], depth: int) -> Iterator[str]:
    for key, value in settings.items():
        indent, reason = "  " * depth, reasons.get(f"{section}.{key}", "")
        if isinstance(value, Mapping) and section == "stages":
            yield f"{indent}{key}:" + (f"  # {reason}" if reason else "")
            yield from _lines(value, f"{section}.{key}", reasons, depth + 1)
            continue
        text = f"{indent}{key}: {_scalar(value)}"
        if not reason:
            yield text
            continue
        column = max(_COLUMN, len(text) + 2)
        if column > _WIDTH - 40:  # a long value: the reason above it
            yield from textwrap.wrap(reason, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
            yield text
            continue
        first, *rest = textwrap.wrap(reason, _WIDTH - column - 2, **_WHOLE_WORDS)
        yield f"{text.ljust(column)}# {first}"
        yield from (f"{' ' * column}# {line}" for line in rest)


def _scalar(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def _plain(node: Any) -> Any:
    """Replace tuples by lists, which YAML has."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, list | tuple) else node


def _with_numbers(node: Any) -> Any:
    """Read texts such as 1e-4, which YAML takes for text, as the numbers that a person meant."""
    if isinstance(node, dict):
        return {key: _with_numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_numbers(value) for value in node]
    if isinstance(node, str) and node[:1] in "0123456789.-+" and "e" in node.lower():
        try:
            return float(node)
        except ValueError:
            return node
    return node
