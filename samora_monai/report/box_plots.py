"""Tukey box plots as inline SVG: horizontal, one for each row of a table, on a common scale.

Differs from matplotlib's SVG in: positions are percentages of the column's width, and colours are classes of the page's
style sheet, so that plots follow narrow screens, dark mode and print; no ids and no global style, which would clash.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.cbook import boxplot_stats
from matplotlib.ticker import MaxNLocator

from samora_monai.report.html_text import text

HEIGHT = 24  # pixels
MARGIN = 0.02  # of the width, at both ends: room for half a dot
FEW = 5  # fewer values are shown as dots: quartiles of three values would be misleading
TICKS = MaxNLocator(2, steps=[1, 1.25, 2, 2.5, 4, 5, 10])  # 0, the middle and the end


def scale_end(values: Sequence[float]) -> float:
    """Return the upper end of a scale from 0 that holds all `values`; 1 if there are none."""
    largest = max(values, default=0.0)
    return float(TICKS.tick_values(0, largest)[-1]) if largest > 0 else 1.0


def axis(end: float) -> str:
    """Draw the axis labels 0, `end / 2` and `end`, to stand above the plots."""
    texts = "".join(
        f'<text x="{_x(part)}" y="12" text-anchor="{anchor}">{end * part:g}</text>'
        for part, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    return f'<svg class="axis" width="100%" height="16" aria-hidden="true">{texts}</svg>'


def box_plot(values: Sequence[float], end: float, name: str) -> str:
    """Draw quartiles as a box, whiskers to the last value within 1.5 box lengths, a dot for each value beyond.

    There is at least one value; all are in [0, end]. The plot's accessible name begins with `name`.
    """
    stats = boxplot_stats(values)[0]
    low, median, high, dots = stats["q1"], stats["med"], stats["q3"], stats["fliers"]
    summary = f"{name}: {len(values)} values from {min(values):.4g} to {max(values):.4g}, median {median:.4g}"
    parts = [_line("grid", part, 0, part, HEIGHT) for part in (0, 0.5, 1)]
    middle = HEIGHT / 2
    if len(values) < FEW:
        dots = values
    else:
        summary += f", quartiles {low:.4g} and {high:.4g}"
        width = 100 * (1 - 2 * MARGIN) * (high - low) / end
        parts += [
            _line("whisker", stats["whislo"] / end, middle, low / end, middle),
            _line("whisker", high / end, middle, stats["whishi"] / end, middle),
            f'<rect class="box" x="{_x(low / end)}" y="5" width="{width:.2f}%" height="14"/>',
            _line("median", median / end, 3, median / end, HEIGHT - 3),
        ]
    parts += [f'<circle class="dot" cx="{_x(value / end)}" cy="{middle:g}" r="3"/>' for value in dots]
    head = f'class="plot" width="100%" height="{HEIGHT}" role="img" aria-label="{text(summary)}"'
    return f"<svg {head}>{''.join(parts)}</svg>"


def _line(css_class: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{css_class}" x1="{_x(x1)}" y1="{y1:g}" x2="{_x(x2)}" y2="{y2:g}"/>'


def _x(part: float) -> str:
    return f"{100 * (MARGIN + (1 - 2 * MARGIN) * part):.2f}%"
