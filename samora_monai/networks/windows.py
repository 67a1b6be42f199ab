"""Square windows of a token grid: where SAM's windowed blocks attend.

SAM pads the grid at the bottom and right with zero tokens up to a multiple of the window; the padded tokens are *not*
masked, they enter the softmax as keys. Here projections run on the true grid and only their results are padded.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Windows:
    """How a grid of ``size x size`` tokens is cut for attention.

    Args:
        size: side of the token grid.
        window: side of the windows; 0 for global attention (one window, no padding).
    """

    def __init__(self, size: int, window: int) -> None:
        self.grid = size
        self.side = window or size
        self.count = -(-size // self.side)  # windows along one side
        self.pad = self.count * self.side - size

    def split(self, x: Tensor, num_heads: int, bias: Tensor | None = None) -> Tensor:
        """``[B, h, w, C]`` -> ``[B * windows, num_heads, side * side, C / num_heads]``.

        `bias`, ``[C]``, is added after the padding: what the projection of a zero token leaves.
        """
        if self.pad:
            x = F.pad(x, (0, 0, 0, self.pad, 0, self.pad))
        if bias is not None:
            x = x + bias
        b, n, s = x.shape[0], self.count, self.side
        # [B, rows, y, columns, x, heads, head_dim] -> [B, rows, columns, heads, y, x, head_dim]
        x = x.reshape(b, n, s, n, s, num_heads, -1).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(b * n * n, num_heads, s * s, -1)

    def merge(self, x: Tensor, batch: int) -> Tensor:
        """The inverse of `split`, padding cropped: ``[B * windows, heads, side * side, d]`` -> ``[B, h, w, C]``."""
        n, s, heads = self.count, self.side, x.shape[1]
        x = x.reshape(batch, n, n, heads, s, s, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return x.reshape(batch, n * s, n * s, -1)[:, : self.grid, : self.grid]
