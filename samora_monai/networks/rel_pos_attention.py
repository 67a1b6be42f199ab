"""Attention with SAM's decomposed relative position, through the fused kernels of torch.

Source: segment-anything (https://arxiv.org/abs/2304.02643), after MViTv2 (https://arxiv.org/abs/2112.01526).

    logits[(y, x), (v, u)] = scale * q . k + q[y, x] . Rh[y - v] + q[y, x] . Rw[x - u]        (q unscaled in Rh, Rw)

Differs from SAM's code in:
- no explicit softmax: either the position terms become an additive bias, or they are folded into wider queries and
  keys, ``q' = [scale q, q Rh, q Rw]``, ``k' = [k, onehot(v), onehot(u)]``, which is exact and needs no N x N bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FOLD_FROM = 512  # tokens; measured on CPU: the bias is faster at 196, folding at 1024 (benchmarks/speed.py)


def relative_rows(table: Tensor, size: int) -> Tensor:
    """Rows of a relative-position table for every pair of positions on one axis.

    Args:
        table: ``[rows, head_dim]``; resized linearly along rows if it has not ``2 * size - 1`` of them.
        size: side of the window or grid.

    Returns:
        ``[size, size, head_dim]``, entry ``[i, j]`` for query position i and key position j.
    """
    rows = 2 * size - 1
    if table.shape[0] != rows:
        table = F.interpolate(table.T[None], size=rows, mode="linear")[0].T
    position = torch.arange(size, device=table.device)
    return table[position[:, None] - position[None, :] + size - 1]


def rel_pos_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, folded: bool | None = None
) -> Tensor:
    """Softmax attention with decomposed relative position on square windows.

    Args:
        q, k, v: ``[B, heads, S * S, head_dim]``, tokens in row-major order.
        rel_pos_h, rel_pos_w: tables ``[2 S - 1, head_dim]``, shared by the heads.
        folded: which of the two exact forms; by default the faster one as measured.

    Returns:
        ``[B, heads, S * S, head_dim]``.
    """
    batch, heads, tokens, dim = q.shape
    size = int(tokens**0.5)
    grid = q.reshape(batch, heads, size, size, dim)
    rel_h = torch.einsum("bnyxc,ykc->bnyxk", grid, relative_rows(rel_pos_h, size))
    rel_w = torch.einsum("bnyxc,xkc->bnyxk", grid, relative_rows(rel_pos_w, size))
    if folded is None:
        folded = tokens >= FOLD_FROM or q.is_cuda
    if not folded:
        bias = (rel_h[..., :, None] + rel_w[..., None, :]).reshape(batch, heads, tokens, tokens)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    width = -(-(dim + 2 * size) // 8) * 8  # the fused kernels want one head width for q, k and v, a multiple of 8
    spare = width - dim - 2 * size
    eye = torch.eye(size, dtype=k.dtype, device=k.device)
    onehot = torch.cat(
        [eye[:, None].expand(size, size, size), eye[None].expand(size, size, size), eye.new_zeros(size, size, spare)],
        -1,
    )  # [S, S, 2 S + spare]
    q = torch.cat(
        [
            q * dim**-0.5,
            rel_h.reshape(batch, heads, tokens, size),
            rel_w.reshape(batch, heads, tokens, size),
            q.new_zeros(batch, heads, tokens, spare),
        ],
        -1,
    )
    k = torch.cat([k, onehot.reshape(tokens, -1).expand(batch, heads, -1, -1)], -1)
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, width - dim)), scale=1.0)[..., :dim]
