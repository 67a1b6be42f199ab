"""Attention with SAM's decomposed relative position, without N x N weights in memory.

Source: segment-anything (https://arxiv.org/abs/2304.02643), after MViTv2 (https://arxiv.org/abs/2112.01526).

    logits[(y, x), (v, u)] = scale * q . k + q[y, x] . Rh[y - v] + q[y, x] . Rw[x - u]

Differs from SAM's code in: it uses torch's fused kernels, in two exact forms (measured in benchmarks/speed.py):
- the position terms are an additive bias, computed for a few heads at a time so that it stays in the processor's cache;
  the backward pass recomputes the weights. Faster on CPU;
- the position terms are folded into wider queries and keys, `q' = [scale q, q Rh, q Rw]`,
  `k' = [k, onehot(v), onehot(u)]`, which need no bias. For GPUs, torch.compile and export.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PART = 2**19  # elements of the bias computed at once: 2 MB in float32


def relative_rows(table: Tensor, size: int) -> Tensor:
    """Rows of a table for query position i and key position j on one axis: `[rows, head_dim]` -> `[i, j, head_dim]`.

    The table is resized linearly along rows unless it has `2 * size - 1` rows; `size` is the side of the window.
    """
    rows = 2 * size - 1
    if table.shape[0] != rows:
        table = F.interpolate(table.T[None], size=rows, mode="linear")[0].T
    position = torch.arange(size, device=table.device)
    return table[position[:, None] - position[None, :] + size - 1]


def rel_pos_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    folded: bool | None = None,
    query_grid: tuple[int, int] | None = None,
) -> Tensor:
    """Softmax attention with decomposed relative position on square windows; returns the shape of q.

    Args:
        q: `[B, heads, h * w, head_dim]`, tokens in row-major order, from the top left of the window.
        k, v: `[B, heads, S * S, head_dim]`.
        rel_pos_h, rel_pos_w: tables `[2 S - 1, head_dim]`, shared by the heads.
        folded: use the second form; by default on devices other than CPU and when compiling.
        query_grid: h and w; by default S and S, the whole window.
    """
    size = int(k.shape[2] ** 0.5)
    height, width = query_grid or (size, size)
    rows_h = relative_rows(rel_pos_h, size)[:height].to(q.dtype)
    rows_w = relative_rows(rel_pos_w, size)[:width].to(q.dtype)
    if folded is None:
        folded = q.device.type != "cpu" or torch.compiler.is_compiling()  # one graph for any number of images
    if folded:
        return _folded_attention(q, k, v, rows_h, rows_w)
    return _BiasedAttention.apply(q, k, v, rows_h, rows_w)


def _position_terms(q: Tensor, rows_h: Tensor, rows_w: Tensor) -> tuple[Tensor, Tensor]:
    """`q . Rh` and `q . Rw`, each `[B, heads, h, w, S]` for a query (y, x) and a key's row v or column u."""
    grid = q.unflatten(2, (len(rows_h), len(rows_w)))
    return torch.einsum("bnyxc,yvc->bnyxv", grid, rows_h), torch.einsum("bnyxc,xuc->bnyxu", grid, rows_w)


def _folded_attention(q: Tensor, k: Tensor, v: Tensor, rows_h: Tensor, rows_w: Tensor) -> Tensor:
    dim, size = q.shape[-1], rows_h.shape[1]
    spare = -(dim + 2 * size) % 8  # the fused kernels need one head width for q, k and v, a multiple of 8
    positions = [t.flatten(2, 3) for t in _position_terms(q, rows_h, rows_w)]
    q = torch.cat([q * dim**-0.5, *positions, q.new_zeros(*q.shape[:3], spare)], -1)
    eye = torch.eye(size, dtype=k.dtype, device=k.device)
    onehot = torch.cat([eye.repeat_interleave(size, 0), eye.repeat(size, 1), eye.new_zeros(size**2, spare)], -1)
    k = torch.cat([k, onehot.expand(*k.shape[:2], -1, -1)], -1)
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, 2 * size + spare)), scale=1.0)[..., :dim]


class _BiasedAttention(torch.autograd.Function):
    """Attention with an additive bias that is computed and discarded part by part, in both passes.

    With P the weights, dP = dO V^T and dL the gradient of the logits:
    `dL = P * (dP - rowsum(P * dP))`, `dV = P^T dO`, `dK = scale dL^T Q`,
    `dQ = scale dL K + (dL summed over u) Rh + (dL summed over v) Rw`.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows_h: Tensor, rows_w: Tensor) -> Tensor:
        out = _empty_like(q)
        for part in _parts(q, k):
            bias = _bias(q[part], rows_h, rows_w)
            out[part] = F.scaled_dot_product_attention(q[part], k[part], v[part], attn_mask=bias)
        ctx.save_for_backward(q, k, v, rows_h, rows_w)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rows_h, rows_w = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        grad_q, grad_k, grad_v = (_empty_like(t) for t in (q, k, v))
        grad_h, grad_w = torch.zeros_like(rows_h), torch.zeros_like(rows_w)
        for part in _parts(q, k):
            query, key, value, grad = (t[part].flatten(0, 1) for t in (q, k, v, grads[0]))
            logits = _bias(q[part], rows_h, rows_w).flatten(0, 1).baddbmm_(query, key.mT, alpha=scale)
            weights = logits.softmax(-1)
            grad_v[part] = (weights.mT @ grad).view_as(v[part])
            grad_logits = (grad @ value.mT).mul_(weights)
            grad_logits.addcmul_(weights, grad_logits.sum(-1, keepdim=True), value=-1)
            grad_k[part] = (grad_logits.mT @ query).mul_(scale).view_as(k[part])
            grid = grad_logits.view(*q[part].shape[:2], len(rows_h), len(rows_w), *[rows_h.shape[1]] * 2)
            grad_rel_h, grad_rel_w = grid.sum(-1), grid.sum(-2)  # of [b, n, y, x, v, u]
            content = (grad_logits @ key).mul_(scale).view_as(q[part])
            position = torch.einsum("bnyxv,yvc->bnyxc", grad_rel_h, rows_h)
            position += torch.einsum("bnyxu,xuc->bnyxc", grad_rel_w, rows_w)
            grad_q[part] = content + position.flatten(2, 3)
            if any(ctx.needs_input_grad[3:]):
                query_grid = q[part].unflatten(2, (len(rows_h), len(rows_w)))
                grad_h += torch.einsum("bnyxv,bnyxc->yvc", grad_rel_h, query_grid)
                grad_w += torch.einsum("bnyxu,bnyxc->xuc", grad_rel_w, query_grid)
        return grad_q, grad_k, grad_v, grad_h, grad_w


def _parts(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of batch and heads whose bias has about `PART` elements."""
    batch, heads, _, _ = q.shape
    heads_at_once = max(1, min(heads, PART // (q.shape[2] * k.shape[2])))
    images_at_once = max(1, PART // (heads * q.shape[2] * k.shape[2]))
    for i in range(0, batch, images_at_once):
        for j in range(0, heads, heads_at_once):
            yield slice(i, i + images_at_once), slice(j, j + heads_at_once)


def _bias(q: Tensor, rows_h: Tensor, rows_w: Tensor) -> Tensor:
    """`[B, heads, h * w, S * S]`."""
    rel_h, rel_w = (t.contiguous() for t in _position_terms(q, rows_h, rows_w))
    return (rel_h[..., :, None] + rel_w[..., None, :]).flatten(4, 5).flatten(2, 3)


def _empty_like(t: Tensor) -> Tensor:
    """An uninitialised tensor with the heads of a token adjacent in memory, as the projections need them."""
    batch, heads, tokens, dim = t.shape
    return t.new_empty(batch, tokens, heads, dim).transpose(1, 2)
