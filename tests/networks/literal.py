"""Slow, literal transcription of a block with experts and HL-Attn: loops over windows, heads and queries, in numpy.

`p` maps a block's parameter names (`attn.qkv.weight`) to float64 arrays; token grids are `[G, G, C]`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

Array = NDArray[np.float64]
Params = dict[str, Array]


def layer_norm(p: Params, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}.weight"] + p[f"{name}.bias"]


def mlp(p: Params, x: Array) -> Array:
    hidden = x @ p["mlp.lin1.weight"].T + p["mlp.lin1.bias"]
    hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    return hidden @ p["mlp.lin2.weight"].T + p["mlp.lin2.bias"]


def attend(
    q: Array, k: Array, v: Array, pad: tuple[Array, Array, Array], side: int, heads: int, tables: list[Array]
) -> Array:
    """Attention of each query of each window and head, one by one.

    Args:
        q, k, v: `[G, G, C]`.
        pad: q, k and v of the padding tokens, which take part as keys.
        side: side of the windows.
        tables: relative positions of rows and of columns, or nothing.
    """
    grid, dim = q.shape[0], q.shape[-1] // heads
    out = np.zeros_like(q)
    for y in range(grid):
        for x in range(grid):
            top, left = y // side * side, x // side * side
            keys = [(j, i) for j in range(top, top + side) for i in range(left, left + side)]
            for head in range(heads):
                part = slice(head * dim, (head + 1) * dim)
                query, logits, values = q[y, x, part], [], []
                for j, i in keys:
                    inside = j < grid and i < grid
                    logit = query @ (k[j, i] if inside else pad[1])[part] / np.sqrt(dim)
                    if tables:
                        logit += query @ tables[0][y - j + side - 1] + query @ tables[1][x - i + side - 1]
                    logits.append(logit)
                    values.append((v[j, i] if inside else pad[2])[part])
                weights = np.exp(logits) / np.exp(logits).sum()
                out[y, x, part] = sum(w * value for w, value in zip(weights, values, strict=True))
    return out


def branch(p: Params, n: Array, side: int, heads: int, experts: tuple[str, ...]) -> Array:
    """SAM's attention before its output projection, with W + B A of all `experts` in place of W."""
    w_q, w_k, w_v = np.split(p["attn.qkv.weight"], 3)
    b_q, b_k, b_v = np.split(p["attn.qkv.bias"], 3)
    for name in experts:
        a, b = f"attn.experts.{name}.linear_a_", f"attn.experts.{name}.linear_b_"
        w_q = w_q + p[f"{b}q.weight"] @ p[f"{a}q.weight"]
        w_v = w_v + p[f"{b}v.weight"] @ p[f"{a}v.weight"]
    tables = [p["attn.rel_pos_h"], p["attn.rel_pos_w"]]
    return attend(n @ w_q.T + b_q, n @ w_k.T + b_k, n @ w_v.T + b_v, (b_q, b_k, b_v), side, heads, tables)


def cross_attention(p: Params, name: str, target: Array, source: Array, side: int, heads: int) -> Array:
    """CA(target <- source), without biases: padding tokens are zero keys with zero values."""
    w_q = p[f"hl_attn.cross.{name}.q.weight"]
    w_k, w_v = np.split(p[f"hl_attn.cross.{name}.kv.weight"], 2)
    zero = np.zeros(len(w_q))
    heads = max(1, len(w_q) * heads // target.shape[-1])  # the heads keep their width in a bottleneck
    out = attend(target @ w_q.T, source @ w_k.T, source @ w_v.T, (zero, zero, zero), side, heads, [])
    return out @ p[f"hl_attn.cross.{name}.proj.weight"].T


def fuse(p: Params, contributions: dict[str, Array], order: tuple[str, ...], side: int, heads: int) -> Array:
    low = contributions[order[0]]
    for name in order[1:]:
        low = contributions[name] + cross_attention(p, name, contributions[name], low, side, heads)
    return low


def block(
    p: Params, x: Array, side: int, heads: int, experts: tuple[str, ...], fusion: str | None, order: tuple[str, ...]
) -> Array:
    """One image's tokens through one block."""
    n = layer_norm(p, "norm1", x)

    def proj(a: Array) -> Array:
        return a @ p["attn.proj.weight"].T + p["attn.proj.bias"]

    def rest(a: Array) -> Array:
        y = x + proj(a)
        return y + mlp(p, layer_norm(p, "norm2", y))

    if fusion is None:
        return rest(branch(p, n, side, heads, experts))
    base = branch(p, n, side, heads, ())
    alone = {name: branch(p, n, side, heads, (name,)) for name in experts}
    if fusion == "attention":
        return rest(base + fuse(p, {name: a - base for name, a in alone.items()}, order, side, heads))
    return rest(base) + fuse(p, {name: rest(a) - rest(base) for name, a in alone.items()}, order, side, heads)
