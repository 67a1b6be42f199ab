"""Attention within square windows of a token grid.

SAM and SAM 2 pad the grid at the bottom and right with zero tokens up to a multiple of the window; the padded tokens
are *not* masked, they enter the softmax as keys.
Differs from their code in: only the true grid is projected, and the key and value of a padded token are the projection
of zero; padded tokens have no queries, because their outputs would be cropped.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

# (q, k, v, rows and columns of a window that q fills) -> shape of q; all are [windows, heads, tokens, head_dim]
Attention = Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]


class Windows:
    """Windows of a token grid, and the attention within them.

    Args:
        side: side of the windows in tokens; 0 for global attention (one window, no padding).
        stride: side of the square of keys for each query; 2 where the queries are pooled (Hiera), with even grids and
            an even `side`.
    """

    def __init__(self, side: int, stride: int = 1) -> None:
        self.side = side
        self.stride = stride

    @property
    def of_queries(self) -> Windows:
        """The same windows on the grid of the queries."""
        return Windows(self.side // self.stride)

    def attend(
        self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, num_heads: int, pad_k: Tensor, pad_v: Tensor
    ) -> Tensor:
        """Attend within each window: q `[B, h, w, C]`, k and v `[B, stride h, stride w, C]` -> `[B, h, w, C]`.

        Args:
            attention: computes the attention of many windows of one shape.
            pad_k, pad_v: key and value of a padded token, `[C]`.
        """
        grid = tuple(k.shape[1:3])
        sides = [self.side or n for n in grid]
        # the whole windows; those cut off at the right, at the bottom, and in the corner
        spans = [[(0, n - n % side), (n - n % side, n)] for n, side in zip(grid, sides, strict=True)]
        areas = [area for area in product(*spans) if all(start < stop for start, stop in area)]
        out = q.new_empty(q.shape)
        for area in areas:
            keys = (slice(None), *(slice(*span) for span in area))
            queries = (slice(None), *(slice(start // self.stride, stop // self.stride) for start, stop in area))
            rows, columns = (min(n, stop - start) // self.stride for n, (start, stop) in zip(sides, area, strict=True))
            query = self._split(q[queries], rows, columns, num_heads)
            key, value = (
                self._split(self._pad(t[keys], sides, pad), sides[0], sides[1], num_heads)
                for t, pad in ((k, pad_k), (v, pad_v))
            )
            tokens = [t.flatten(0, 2).flatten(2, 3) for t in (query, key, value)]  # [B * windows, heads, tokens, d]
            result = attention(tokens[0], tokens[1], tokens[2], (rows, columns))
            if len(areas) == 1 and result.shape[0] == q.shape[0]:
                return result.transpose(1, 2).reshape(q.shape)
            self._split(out[queries], rows, columns, num_heads).copy_(result.reshape(query.shape))
        return out

    @staticmethod
    def _split(x: Tensor, rows: int, columns: int, num_heads: int) -> Tensor:
        """A view of `[B, h, w, C]` as `[B, h / rows, w / columns, num_heads, rows, columns, C / num_heads]`."""
        x = x.unflatten(3, (num_heads, -1)).unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
        return x.permute(0, 1, 3, 5, 2, 4, 6)

    @staticmethod
    def _pad(x: Tensor, sides: list[int], pad: Tensor) -> Tensor:
        """Pad `[B, h, w, C]` at the bottom and right to a multiple of the window."""
        bottom, right = (-n % side for n, side in zip(x.shape[1:3], sides, strict=True))
        pad = pad.to(x.dtype)  # under autocast x is narrower than the parameter
        if right:
            x = torch.cat([x, pad.expand(*x.shape[:2], right, -1)], 2)
        if bottom:
            x = torch.cat([x, pad.expand(x.shape[0], bottom, *x.shape[2:])], 1)
        return x
