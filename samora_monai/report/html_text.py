"""Text and numbers as a page of HTML can take them."""

from __future__ import annotations

import re
from html import escape

import numpy as np

NOTHING = "\N{EN DASH}"  # where there is nothing to measure
# what HTML has no place for: control characters, and bytes of a file name that are not UTF-8
_NO_TEXT = re.compile(r"[^\t\n -~\xa0-\ud7ff\ue000-\U0010ffff]")


def text(value: str) -> str:
    """Escaped, for content and for attributes in double quotes."""
    return escape(_NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", value), quote=True)


def number(value: float, digits: int) -> str:
    """With so many decimals; a dash for NaN."""
    return NOTHING if np.isnan(value) else f"{value:.{digits}f}"
