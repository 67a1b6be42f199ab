"""Postprocessing of the slices of a volume: see `samora_monai.data.Postprocessing`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_TRUNCATE = 3.0  # standard deviations


def radius_of(width: float) -> int:
    """Number of slices on each side that a Gaussian of `width` slices spans; 0 is no smoothing."""
    return int(_TRUNCATE * width + 0.5)


def smoothed(chunks: Iterable[Tensor], width: float) -> Iterator[Tensor]:
    """Average the class probabilities of neighbouring slices with the weights of a Gaussian.

    Args:
        chunks: logits `[b, K, X, Y]` of the slices of a volume, in their order.
        width: standard deviation in slices; where `radius_of` is 0, the chunks are returned as they are.

    Yields:
        for the same slices in the same order, but in other chunks, `[b, K, X, Y]`: probabilities times the sum of the
        weights, which is smaller at both ends of the volume. At no time are more slices kept than the weights span.
    """
    radius = radius_of(width)
    if radius == 0:
        yield from chunks
        return
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / width) ** 2)
    held: Tensor | None = None  # probabilities of the slices from number `first` on
    first = done = 0  # `done` slices have been returned
    for chunk in chunks:
        probabilities = chunk.float().softmax(1)
        held = probabilities if held is None else torch.cat([held, probabilities])
        end = first + len(held) - radius
        if end > done:
            yield _averages(held, range(done - first, end - first), weights)
            done = end
            unused = max(0, done - radius) - first
            held, first = held[unused:], first + unused
    if held is not None:
        yield _averages(held, range(done - first, len(held)), weights)


def _averages(slices: Tensor, positions: range, weights: Tensor) -> Tensor:
    """Sums of the weighted neighbours of some of the slices `[n, K, X, Y]`."""
    radius, sums = len(weights) // 2, []
    for position in positions:
        low = max(0, position - radius)
        part = slices[low : position + radius + 1]
        skipped = low - position + radius
        sums.append(torch.tensordot(weights[skipped : skipped + len(part)].to(part), part, 1))
    return torch.stack(sums)


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected components (26 neighbours) of a mask `[X, Y, Z]`: their numbers from 1 on, and the size of each."""
    numbers, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    return numbers, np.bincount(numbers.ravel())[1:]


def keep_largest(labels: Tensor, classes: Sequence[int]) -> None:
    """Keep the largest of the `components` of some classes of a label map `[X, Y, Z]`, in place."""
    for number in classes:
        mask = (labels == number).cpu().numpy()
        numbers, sizes = components(mask)
        if len(sizes) > 1:
            labels[torch.from_numpy(mask & (numbers != 1 + sizes.argmax())).to(labels.device)] = 0
