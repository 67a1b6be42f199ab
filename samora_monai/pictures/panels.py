"""Rows of titled pictures on black, as PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from samora_monai.errors import InputError
from samora_monai.replacing import replacing

DPI = 120
# in pixels, so that equal slices have equal size in every file
SIDE = 360  # a panel's longer side
GAP = 10  # between panels
LINE, TITLE = 24, 264  # title of a panel: height of a line, and its minimum width
HEAD = 60  # the main title


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        picture: grey `[H, W]` or RGB `[H, W, 3]`, values in [0, 1] (others are clipped).
        title: one or two lines above the picture.
        extent: width and height in any unit; only their ratio matters.
        smooth: interpolate between pixels, for images; without it, maps of tokens show each token as a square.
        marked: yellow title, for the picture with which the others of its row are compared.
    """

    picture: np.ndarray
    title: str
    extent: tuple[float, float]
    smooth: bool = True
    marked: bool = False

    def size(self, side: int = SIDE) -> tuple[int, int]:
        """Width and height in pixels, of which the longer one is `side`."""
        width, height = self.extent
        return round(side * min(1.0, width / height)), round(side * min(1.0, height / width))


def save_panels(path: str | os.PathLike[str], rows: Sequence[Sequence[Panel]], title: str, side: int = SIDE) -> None:
    """Write rows of panels, which may differ in length, atomically.

    Args:
        path: the PNG file; its folder is created if needed.
        rows: from top to bottom, at least one with at least one panel.
        title: one line at the top; none if it is empty.
        side: the longer side of a panel in pixels.

    Raises:
        InputError: the file cannot be written.
    """
    place_width = max(TITLE, *(panel.size(side)[0] for row in rows for panel in row)) + GAP
    picture_height = max(panel.size(side)[1] for row in rows for panel in row)
    lines = max(panel.title.count("\n") + 1 for row in rows for panel in row)
    place_height = picture_height + LINE * lines + GAP
    head = HEAD if title else 0
    total = (max(len(row) for row in rows) * place_width + GAP, len(rows) * place_height + head)
    figure = Figure(figsize=(total[0] / DPI, total[1] / DPI), dpi=DPI, facecolor="black")
    figure.suptitle(title, color="white", fontsize=14, y=1 - head / 2 / total[1], va="center", parse_math=False)
    for r, row in enumerate(rows):
        for c, panel in enumerate(row):
            width, height = panel.size(side)
            left = GAP + c * place_width + (place_width - GAP - width) // 2
            bottom = (len(rows) - 1 - r) * place_height + GAP + picture_height - height  # titles are aligned
            box = (left / total[0], bottom / total[1], width / total[0], height / total[1])
            axis = figure.add_axes(box)
            how = "lanczos" if panel.smooth else "nearest"
            picture = np.clip(panel.picture, 0, 1)
            # the axes have the proportions of `extent`
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation=how)
            color = "gold" if panel.marked else "white"
            axis.set_title(panel.title, color=color, fontsize=11, pad=4, parse_math=False)
            axis.set_axis_off()
    try:
        with replacing(path) as unfinished:
            figure.savefig(unfinished, format="png", dpi=DPI)
    except OSError as error:
        raise InputError(f"cannot write '{path}': {error.strerror or error}; choose another --output_dir") from error
