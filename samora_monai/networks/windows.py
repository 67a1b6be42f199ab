"""Attention within square windows of a token grid.

SAM pads the grid at the bottom and right with zero tokens up to a multiple of the window; the padded tokens are *not*
masked, they enter the softmax as keys.
Differs from SAM's code in: only the true grid is projected, and the key and value of a padded token are the projection
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
    """Windows of a grid of `size x size` tokens.

    Args:
        size: side of the token grid.
        window: side of the windows; 0 for global attention (one window, no padding).
    """

    def __init__(self, size: int, window: int) -> None:
        self.side = window or size
        whole = size - size % self.side
        spans = [slice(*span) for span in ((0, whole), (whole, size)) if span[0] < span[1]]
        # the whole windows; those cut off at the right, at the bottom, and in the corner
        self.areas = [(slice(None), rows, columns) for rows, columns in product(spans, spans)]

    def attend(
        self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, num_heads: int, pad_k: Tensor, pad_v: Tensor
    ) -> Tensor:
        """Attend within each window: `[B, h, w, C]` -> `[B, h, w, C]`.

        Args:
            attention: computes the attention of many windows of one shape.
            pad_k, pad_v: key and value of a padded token, `[C]`.
        """
        out = q.new_empty(q.shape)
        for area in self.areas:
            rows, columns = (min(self.side, n) for n in q[area].shape[1:3])
            query = self._split(q[area], rows, columns, num_heads)
            key, value = (
                self._split(self._pad(t[area], pad), self.side, self.side, num_heads)
                for t, pad in ((k, pad_k), (v, pad_v))
            )
            tokens = [t.flatten(0, 2).flatten(2, 3) for t in (query, key, value)]  # [B * windows, heads, tokens, d]
            result = attention(tokens[0], tokens[1], tokens[2], (rows, columns))
            if len(self.areas) == 1 and result.shape[0] == q.shape[0]:
                return result.transpose(1, 2).reshape(q.shape)
            self._split(out[area], rows, columns, num_heads).copy_(result.reshape(query.shape))
        return out

    @staticmethod
    def _split(x: Tensor, rows: int, columns: int, num_heads: int) -> Tensor:
        """A view of `[B, h, w, C]` as `[B, h / rows, w / columns, num_heads, rows, columns, C / num_heads]`."""
        x = x.unflatten(3, (num_heads, -1)).unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
        return x.permute(0, 1, 3, 5, 2, 4, 6)

    def _pad(self, x: Tensor, pad: Tensor) -> Tensor:
        """Pad `[B, h, w, C]` at the bottom and right to a multiple of the window."""
        bottom, right = (-n % self.side for n in x.shape[1:3])
        pad = pad.to(x.dtype)  # under autocast x is narrower than the parameter
        if right:
            x = torch.cat([x, pad.expand(*x.shape[:2], right, -1)], 2)
        if bottom:
            x = torch.cat([x, pad.expand(x.shape[0], bottom, *x.shape[2:])], 1)
        return x
