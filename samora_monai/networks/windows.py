"""Attention within square windows of a token grid.

SAM and SAM 2 pad the grid at the bottom and right with zero tokens up to a multiple of the window; the padded tokens
are *not* masked, they enter the softmax as keys.
Differs from their code in: only the true grid is projected, and the key and value of a padded token are the projection
of zero; padded tokens have no queries, because their outputs would be cropped; a whole block runs on the tokens in the
order of the windows, so that the heads of a window are views and nothing is copied around its attention.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# (q, k, v, rows and columns of a window without padding) -> shape of q; all are [windows, heads, tokens, head_dim]
Attention = Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]


class Area(NamedTuple):
    """A rectangle of the grid whose windows have the same padding."""

    top: int
    left: int
    height: int
    width: int
    rows: int  # of a window, without padding
    columns: int

    def windows(self, grid: Tensor) -> Tensor:
        """A view of the area in `[B, h, w, C]`, as `[B, down, across, rows, columns, C]`."""
        part = grid[:, self.top : self.top + self.height, self.left : self.left + self.width]
        return part.unflatten(2, (-1, self.columns)).unflatten(1, (-1, self.rows)).transpose(2, 3)


class Windows:
    """The windows of a batch of token grids, and the attention within them.

    Args:
        side: side of the windows in tokens; 0 for global attention (one window, no padding).
        grid: B, h and w, the number of grids and the size of each.
    """

    def __init__(self, side: int, grid: tuple[int, int, int]) -> None:
        self.side = side
        self.grid = grid
        self.sides = [side or n for n in grid[1:]]
        # the whole windows; those cut off at the right, at the bottom, and in the corner
        spans = [
            [(0, n - n % side, side), (n - n % side, n % side, n % side)]
            for n, side in zip(grid[1:], self.sides, strict=True)
        ]
        self.areas = [Area(y[0], x[0], y[1], x[1], y[2], x[2]) for y, x in product(*spans) if y[1] and x[1]]

    def partition(self, x: Tensor) -> Tensor:
        """`[B, h, w, C]` -> tokens `[B h w, C]`: area after area, window after window."""
        return _joined([area.windows(x).reshape(-1, x.shape[-1]) for area in self.areas])

    def restore(self, x: Tensor) -> Tensor:
        """Invert `partition`."""
        if len(self.areas) == 1:
            area = self.areas[0]
            shape = (self.grid[0], area.height // area.rows, area.width // area.columns, area.rows, area.columns)
            return x.unflatten(0, shape).transpose(2, 3).reshape(*self.grid, -1)
        out = x.new_empty(*self.grid, x.shape[-1])
        for area, tokens in zip(self.areas, self._split(x), strict=True):
            windows = area.windows(out)
            windows.copy_(tokens.reshape(windows.shape))
        return out

    def pooled(self) -> Windows:
        """The same windows after `pool`."""
        batch, height, width = self.grid
        return Windows(self.side // 2, (batch, height // 2, width // 2))

    def pool(self, x: Tensor) -> Tensor:
        """Maximum over 2 x 2 tokens: `[B h w, C]` -> `[B h/2 w/2, C]`; the sides of grid and windows are even."""
        parts = []
        for area, tokens in zip(self.areas, self._split(x), strict=True):
            images = tokens.unflatten(0, (-1, area.rows, area.columns)).permute(0, 3, 1, 2)
            parts.append(F.max_pool2d(images, 2).permute(0, 2, 3, 1).flatten(0, 2))
        return _joined(parts)

    def attend(
        self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, num_heads: int, pad_k: Tensor, pad_v: Tensor
    ) -> Tensor:
        """Attend within each window: k and v `[B h w, C]`, q the same or pooled -> shape of q.

        Args:
            attention: computes the attention of many windows of one shape.
            pad_k, pad_v: key and value of a padded token, `[C]`.
        """
        results = []
        for area, query, key, value in zip(self.areas, self._split(q), self._split(k), self._split(v), strict=True):
            count = self.grid[0] * (area.height // area.rows) * (area.width // area.columns)
            heads = [
                t.unflatten(0, (count, -1)).unflatten(2, (num_heads, -1)).transpose(1, 2)
                for t in (query, self._pad(key, area, pad_k), self._pad(value, area, pad_v))
            ]
            result = attention(heads[0], heads[1], heads[2], (area.rows, area.columns))
            results.append(result.transpose(1, 2).reshape(query.shape))
        return _joined(results)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """The tokens of each area, `x` being those of the grid or pooled."""
        _, height, width = self.grid
        return x.split([x.shape[0] * area.height * area.width // (height * width) for area in self.areas])

    def _pad(self, x: Tensor, area: Area, pad: Tensor) -> Tensor:
        """Pad each window of an area, `[tokens, C]`, at the bottom and right to its full size."""
        bottom, right = self.sides[0] - area.rows, self.sides[1] - area.columns
        if not bottom and not right:
            return x
        pad = pad.to(x.dtype)  # under autocast x is narrower than the parameter
        x = x.unflatten(0, (-1, area.rows, area.columns))
        x = torch.cat([x, pad.expand(*x.shape[:2], right, -1)], 2)
        return torch.cat([x, pad.expand(x.shape[0], bottom, *x.shape[2:])], 1).flatten(0, 2)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
