"""Text and numbers as HTML, and the HTML files of this folder."""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files

import numpy as np

NOTHING = "\N{EN DASH}"  # in place of a value that does not exist
# characters that HTML does not allow: control characters, and bytes of a file name that are not UTF-8
_INVALID = re.compile(r"[^\t\n -~\xa0-\ud7ff\ue000-\U0010ffff]")


def text(value: str) -> str:
    """Escape text for content and for attributes in double quotes."""
    return escape(_INVALID.sub("\N{REPLACEMENT CHARACTER}", value), quote=True)


def number(value: float, digits: int) -> str:
    """Format a number with `digits` decimals; NaN becomes a dash."""
    return NOTHING if np.isnan(value) else f"{value:.{digits}f}"


def read(name: str) -> str:
    """Read a file of this folder."""
    return files("samora_monai.report").joinpath(name).read_text(encoding="utf-8")
