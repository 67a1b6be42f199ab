"""Slow, literal transcription of Hiera's block with experts and HL-Attn, in numpy.

The steps are those of SAM 2's code: pad the normalised tokens with zeros, cut them into windows, project the padded
windows, pool the queries inside each window, attend, join the windows, crop. `p` maps a block's parameter names to
float64 arrays; token grids are `[h, w, C]`.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erf

from tests.networks.literal import Array, Params, fuse, layer_norm


def linear(p: Params, name: str, x: Array) -> Array:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def mlp(p: Params, x: Array) -> Array:
    hidden = linear(p, "mlp.layers.0", x)
    return linear(p, "mlp.layers.1", hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))))


def max_pool(x: Array) -> Array:
    """Maximum over 2 x 2 tokens: `[h, w, C]` -> `[h/2, w/2, C]`."""
    out = np.empty((x.shape[0] // 2, x.shape[1] // 2, x.shape[2]))
    for y in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[y, i] = x[2 * y : 2 * y + 2, 2 * i : 2 * i + 2].max((0, 1))
    return out


def projections(p: Params, n: Array, experts: tuple[str, ...]) -> list[Array]:
    """q, k and v of tokens; each expert adds `B A n` to q and v, over their full width."""
    q, k, v = np.split(linear(p, "attn.qkv", n), 3, -1)
    for name in experts:
        down, up = f"attn.experts.{name}.linear_a_", f"attn.experts.{name}.linear_b_"
        assert p[f"{up}q.weight"].shape[0] == p[f"{up}v.weight"].shape[0] == q.shape[-1]
        q = q + n @ p[f"{down}q.weight"].T @ p[f"{up}q.weight"].T
        v = v + n @ p[f"{down}v.weight"].T @ p[f"{up}v.weight"].T
    return [q, k, v]


def attend_window(q: Array, k: Array, v: Array, heads: int) -> Array:
    """q `[a, b, C]` of a window attends to all its keys `[c, d, C]`."""
    width = q.shape[-1] // heads
    out = np.empty_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        keys, values = k[..., part].reshape(-1, width), v[..., part].reshape(-1, width)
        for y in range(q.shape[0]):
            for x in range(q.shape[1]):
                weights = np.exp(keys @ q[y, x, part] / np.sqrt(width))
                out[y, x, part] = weights / weights.sum() @ values
    return out


def branch(p: Params, n: Array, side: int, heads: int, pooled: bool, experts: tuple[str, ...]) -> Array:
    """Attention before its output projection, of the base with all of `experts`."""
    height, width = n.shape[:2]
    side_y, side_x = side or height, side or width
    rows, columns = -(-height // side_y) * side_y, -(-width // side_x) * side_x
    padded = np.zeros((rows, columns, n.shape[2]))
    padded[:height, :width] = n
    stride = 2 if pooled else 1
    out = np.empty((rows // stride, columns // stride, p["attn.proj.weight"].shape[1]))
    for top in range(0, rows, side_y):
        for left in range(0, columns, side_x):
            q, k, v = projections(p, padded[top : top + side_y, left : left + side_x], experts)
            if pooled:
                q = max_pool(q)
            y, x = top // stride, left // stride
            out[y : y + q.shape[0], x : x + q.shape[1]] = attend_window(q, k, v, heads)
    return out[: height // stride, : width // stride]


def block(
    p: Params,
    x: Array,
    side: int,
    heads: int,
    pooled: bool,
    experts: tuple[str, ...],
    fusion: str | None,
    order: tuple[str, ...],
) -> Array:
    """One image's tokens through one block.

    Args:
        side: side of the windows, 0 for global attention.
        heads: number of heads, of the wider tokens where the block is `pooled`.
    """
    n = layer_norm(p, "norm1", x)
    shortcut = max_pool(linear(p, "proj", n)) if pooled else x

    def rest(attention: Array) -> Array:
        y = shortcut + linear(p, "attn.proj", attention)
        return y + mlp(p, layer_norm(p, "norm2", y))

    if fusion is None:
        return rest(branch(p, n, side, heads, pooled, experts))
    base = branch(p, n, side, heads, pooled, ())
    alone = {name: branch(p, n, side, heads, pooled, (name,)) for name in experts}
    grid = base.shape[0]  # HL-Attn has the windows and the grid of the queries
    windows = (side // 2 if pooled else side) or grid
    if fusion == "attention":
        return rest(base + fuse(p, {name: a - base for name, a in alone.items()}, order, windows, heads))
    return rest(base) + fuse(p, {name: rest(a) - rest(base) for name, a in alone.items()}, order, windows, heads)
