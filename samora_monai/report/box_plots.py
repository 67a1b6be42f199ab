"""Box plots as inline SVG, for one row of a table each: Tukey's, horizontal, on a common scale.

Positions are percentages, so that a plot is as wide as its column. Colours come from the page's style sheet by class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from samora_monai.report.html_text import text

HEIGHT = 24  # pixels
MARGIN = 0.02  # of the width, at both ends: room for half a dot
FEW = 5  # fewer values are shown as points: a box of three would claim more than is known
NICE = (1, 2, 2.5, 4, 5, 8, 10)  # upper ends of a scale, times a power of ten; half of each has few digits


def scale_end(values: Sequence[float]) -> float:
    """The upper end of a scale from 0 that holds all `values`; 1 for none."""
    largest = max(values, default=0.0)
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(n * power for n in NICE if n * power >= largest * (1 - 1e-9))


def axis(end: float) -> str:
    """The scale from 0 to `end` with its middle, to stand above the plots."""
    texts = "".join(
        f'<text x="{_x(part)}" y="12" text-anchor="{anchor}">{end * part:g}</text>'
        for part, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    return f'<svg class="axis" width="100%" height="16" aria-hidden="true">{texts}</svg>'


def box_plot(values: Sequence[float], end: float, what: str) -> str:
    """One plot: quartiles as a box, whiskers to the last value within 1.5 box lengths, a dot for each value beyond.

    Args:
        values: at least one, none NaN, in [0, end].
        end: upper end of the scale.
        what: what is shown, for readers who do not see it.
    """
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    summary = f"{what}: {len(values)} values from {min(values):.4g} to {max(values):.4g}, median {median:.4g}"
    parts = [_line("grid", part, 0, part, HEIGHT) for part in (0, 0.5, 1)]
    middle = HEIGHT / 2
    if len(values) < FEW:
        dots: Sequence[float] = values
    else:
        summary += f", quartiles {low:.4g} and {high:.4g}"
        reach = 1.5 * (high - low)
        inside = [value for value in values if low - reach <= value <= high + reach]
        dots = [value for value in values if not low - reach <= value <= high + reach]
        parts += [
            _line("whisker", min(*inside, low) / end, middle, low / end, middle),
            _line("whisker", high / end, middle, max(*inside, high) / end, middle),
            f'<rect class="box" x="{_x(low / end)}" y="5" width="{_width((high - low) / end)}" height="14"/>',
            _line("median", median / end, 3, median / end, HEIGHT - 3),
        ]
    parts += [f'<circle class="dot" cx="{_x(value / end)}" cy="{middle:g}" r="3"/>' for value in dots]
    start = f'<svg class="plot" width="100%" height="{HEIGHT}" role="img" aria-label="{text(summary)}">'
    return start + "".join(parts) + "</svg>"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{_x(x1)}" y1="{y1:g}" x2="{_x(x2)}" y2="{y2:g}"/>'


def _x(part: float) -> str:
    return f"{100 * (MARGIN + (1 - 2 * MARGIN) * part):.2f}%"


def _width(part: float) -> str:
    return f"{100 * (1 - 2 * MARGIN) * part:.2f}%"
