"""Plots of a grid: mean Dice over the number of labelled scans, and over the steps of the fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.fewshot.spread import Estimate
from samora_monai.replacing import replacing

Lines = Mapping[str, Mapping[float, Estimate]]


def plot_scans(lines: Lines, path: Path) -> None:
    """Plot Dice in percent over the number of labelled scans.

    Args:
        lines: the mean Dice of each system by the number of scans.
        path: PNG file to write.
    """
    _plot(lines, path, "labelled scans")


def plot_steps(lines: Lines, path: Path) -> None:
    """Plot Dice in percent over the fraction of the steps, from 0 to 1, which is drawn in percent."""
    in_percent = {name: {100 * part: point for part, point in line.items()} for name, line in lines.items()}
    _plot(in_percent, path, "steps of the fine-tuning, %")


def _plot(lines: Lines, path: Path, label: str) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    ticks: Sequence[float] = sorted({x for line in lines.values() for x in line})
    for (name, line), marker in zip(lines.items(), "os^vDPX", strict=False):
        dice = [point.mean for point in line.values()]
        below = [point.mean - point.low for point in line.values()]
        above = [point.high - point.mean for point in line.values()]
        axes.errorbar(list(line), dice, [below, above], label=name, marker=marker, capsize=3, markersize=5)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel("mean Dice, %")
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(fontsize="small")
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=150)
