"""The three pictures of a case in a report, as PNG in `data:` URIs: scan, reference, prediction."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from samora_monai.pictures.overlay import overlay
from samora_monai.report.case_slices import CaseSlice

SIDE = 640  # pixels of the longer side; outlines are two pixels wide, visible at half the size
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")
FONT_SIZE = 19


def case_pictures(shown: CaseSlice, num_classes: int) -> dict[str, str | int]:
    """Draw a slice with square pixels, and beside each class its number, as colours repeat after ten classes.

    Returns:
        PNG files as `data:` URIs: `scan`, `reference` (filled and outlined), `prediction` (filled, with the outline of
        the reference); and their `width` and `height` in pixels.
    """
    extent = np.multiply(shown.image.shape, shown.pixel_mm)
    height, width = (max(1, round(side)) for side in (SIDE * extent / extent.max()).tolist())

    def resized(picture: np.ndarray, how: Image.Resampling) -> np.ndarray:
        return np.asarray(Image.fromarray(picture).resize((width, height), how))

    image = resized(shown.image, Image.Resampling.BICUBIC) / 255
    label, pred = (resized(labels, Image.Resampling.NEAREST) for labels in (shown.label, shown.pred))

    def drawn(outline: np.ndarray | None, fill: np.ndarray | None) -> str:
        picture = Image.fromarray(overlay(image, outline, fill, num_classes))
        if fill is not None:
            _draw_numbers(picture, fill)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

    pictures = {"scan": drawn(None, None), "reference": drawn(label, label), "prediction": drawn(label, pred)}
    return {**pictures, "width": width, "height": height}


def _draw_numbers(picture: Image.Image, labels: np.ndarray) -> None:
    # to the right of each class of the label map [H, W]
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(str(FONT), FONT_SIZE)
    for index in np.unique(labels[labels > 0]).tolist():
        y, x = np.nonzero(labels == index)
        right = int(x.argmax())
        left = min(int(x[right]) + 3, picture.width - int(draw.textlength(str(index), font)) - 2)
        top = min(max(int(y[right]), FONT_SIZE), picture.height - FONT_SIZE)
        draw.text((left, top), str(index), "white", font, anchor="lm", stroke_width=2, stroke_fill="black")
