"""A picture of the chosen scans, each beside the scans that it stands for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from samora_monai.errors import InputError
from samora_monai.replacing import replacing
from samora_monai.selection.features import ScanFeatures

FONT = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
# in pixels
LARGE, SMALL = 240, 96  # longer side of a chosen scan and of the others
GAP, LINE = 10, 18
COLUMNS = 9  # small pictures side by side
MOST = 27  # small pictures of a cluster; the number of the others is stated
YELLOW, WHITE, GREY = "gold", "white", "darkgrey"


@dataclass(frozen=True)
class Row:
    """A row of the sheet: one large picture, or none, and small ones.

    Args:
        title: a line above the row.
        chosen: name and features of the chosen scan; None for a row of labelled scans.
        others: of the other scans of the row.
    """

    title: str
    chosen: tuple[str, ScanFeatures] | None
    others: Sequence[tuple[str, ScanFeatures]]


def save_contact_sheet(path: str | os.PathLike[str], rows: Sequence[Row], title: str) -> None:
    """Write the rows as one PNG, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    drawn = [_row(row) for row in rows]
    width = max(picture.width for picture in drawn)
    height = 2 * GAP + LINE + sum(picture.height for picture in drawn)
    sheet = Image.new("RGB", (width, height))
    _write(sheet, (GAP, GAP), title, WHITE, 15, width - 2 * GAP)
    top = 2 * GAP + LINE
    for picture in drawn:
        sheet.paste(picture, (0, top))
        top += picture.height
    try:
        with replacing(path) as unfinished:
            sheet.save(unfinished, "PNG", optimize=True)
    except OSError as error:
        raise InputError(f"cannot write '{path}': {error.strerror or error}; choose another --output") from error


def _row(row: Row) -> Image.Image:
    shown, rest = row.others[:MOST], len(row.others) - MOST
    lines = -(-len(shown) // COLUMNS)
    small_height = SMALL + LINE
    top = GAP + LINE  # of the pictures
    height = max(LARGE + LINE if row.chosen else 0, lines * small_height + (LINE if rest > 0 else 0))
    left = 2 * GAP + LARGE if row.chosen else GAP
    picture = Image.new("RGB", (2 * GAP + LARGE + COLUMNS * (SMALL + GAP), top + height + GAP))
    _write(picture, (GAP, GAP), row.title, YELLOW if row.chosen else WHITE, 13, picture.width - 2 * GAP)
    if row.chosen:
        _place(picture, (GAP, top), row.chosen, LARGE, YELLOW)
    for i, scan in enumerate(shown):
        place = (left + i % COLUMNS * (SMALL + GAP), top + i // COLUMNS * small_height)
        _place(picture, place, scan, SMALL, GREY)
    if rest > 0:
        _write(picture, (left, top + lines * small_height), f"and {rest} more", GREY, 12, SMALL * COLUMNS)
    return picture


def _place(sheet: Image.Image, place: tuple[int, int], scan: tuple[str, ScanFeatures], side: int, color: str) -> None:
    """Draw a picture and its name into a square of this side and a line below it."""
    name, features = scan
    width, height = (side * extent / max(features.extent) for extent in features.extent)
    size = (max(1, round(width)), max(1, round(height)))
    grey = Image.fromarray(np.round(255 * np.clip(features.picture, 0, 1)).astype(np.uint8))
    at = (place[0] + (side - size[0]) // 2, place[1] + (side - size[1]) // 2)
    sheet.paste(grey.resize(size, Image.Resampling.BICUBIC), at)
    _write(sheet, (place[0], place[1] + side + 2), name, color, 12 if side == LARGE else 11, side)


def _write(sheet: Image.Image, place: tuple[int, int], text: str, color: str, size: int, width: int) -> None:
    """Write one line; of a text that is too wide, the beginning and the end."""
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(FONT, size)
    shown, kept = text, len(text)
    while draw.textlength(shown, font) > width and kept > 2:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - kept // 2 :]}"
    draw.text(place, shown, color, font)
