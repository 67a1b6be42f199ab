"""The configs of a bundle as they are written, before anything is resolved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from tests.bundles.command_line import BUNDLE


def config(*names: str, source: Path = BUNDLE) -> dict[str, Any]:
    """One config file as it is written, or several laid over each other."""
    paths = [str(source / "configs" / name) for name in names]
    return ConfigParser.load_config_files(paths) if len(paths) > 1 else ConfigParser.load_config_file(paths[0])


def strings(node: Any) -> Iterator[str]:
    """Every string in a config."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from strings([key, value])
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
