"""Slow, literal transcription of H-SAM's two decoders for one image: loops over heads and classes, in numpy.

`p` maps a decoder's parameter names to float64 arrays; images are `[C, H, W]`, token sets `[n, C]`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

Array = NDArray[np.float64]
Params = dict[str, Array]


def linear(p: Params, name: str, x: Array) -> Array:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(p: Params, name: str, x: Array, eps: float = 1e-5) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * p[f"{name}.weight"] + p[f"{name}.bias"]


def softmax(x: Array, axis: int) -> Array:
    weights = np.exp(x - x.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def attention(p: Params, name: str, q: Array, k: Array, v: Array, prior: Array | None = None, heads: int = 8) -> Array:
    q, k, v = linear(p, f"{name}.q_proj", q), linear(p, f"{name}.k_proj", k), linear(p, f"{name}.v_proj", v)
    outs = []
    for qh, kh, vh in zip(*(np.split(t, heads, 1) for t in (q, k, v)), strict=True):
        weights = softmax(qh @ kh.T / np.sqrt(qh.shape[1]), 1)
        outs.append((weights if prior is None else weights * prior) @ vh)
    return linear(p, f"{name}.out_proj", np.concatenate(outs, 1))


def transformer(
    p: Params, name: str, image: Array, pe: Array, tokens: Array, prior: Array | None
) -> tuple[Array, Array]:
    keys, key_pe, queries = image.reshape(len(image), -1).T, pe.reshape(len(pe), -1).T, tokens
    for i in range(2):
        b = f"{name}.layers.{i}"
        taken = attention(p, f"{b}.cross_attn_token_to_image", queries + tokens, keys + key_pe, keys, prior)
        queries = norm(p, f"{b}.norm2", queries + taken)
        if i == 0:
            queries = attention(p, f"{b}.self_attn", queries, queries, queries)
        else:
            queries = queries + attention(p, f"{b}.self_attn", queries + tokens, queries + tokens, queries)
        queries = norm(p, f"{b}.norm1", queries)
        hidden = np.maximum(linear(p, f"{b}.mlp.lin1", queries), 0)
        queries = norm(p, f"{b}.norm3", queries + linear(p, f"{b}.mlp.lin2", hidden))
        back = None if prior is None else prior.T
        taken = attention(p, f"{b}.cross_attn_image_to_token", keys + key_pe, queries + tokens, queries, back)
        keys = norm(p, f"{b}.norm4", keys + taken)
    taken = attention(p, f"{name}.final_attn_token_to_image", queries + tokens, keys + key_pe, keys)
    return norm(p, f"{name}.norm_final_attn", queries + taken), keys


def up(p: Params, name: str, x: Array) -> Array:
    """Upsample each pixel to 2 x 2."""
    weight = p[f"{name}.weight"]  # [C, D, 2, 2]
    out = np.zeros((weight.shape[1], 2 * x.shape[1], 2 * x.shape[2]))
    for i in range(2):
        for j in range(2):
            out[:, i::2, j::2] = np.einsum("chw,cd->dhw", x, weight[:, :, i, j]) + p[f"{name}.bias"][:, None, None]
    return out


def norm2d(p: Params, name: str, x: Array) -> Array:
    return norm(p, name, x.transpose(1, 2, 0), 1e-6).transpose(2, 0, 1)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def upscale(p: Params, keys: Array) -> Array:
    grid = int(len(keys) ** 0.5)
    x = up(p, "output_upscaling.0", keys.T.reshape(-1, grid, grid))
    return gelu(up(p, "output_upscaling.3", gelu(norm2d(p, "output_upscaling.1", x))))


def masks_of(p: Params, name: str, layers: int, tokens: Array, pixels: Array) -> Array:
    masks = []
    for i, token in enumerate(tokens):
        for j in range(layers):
            token = linear(p, f"{name}.{i}.layers.{j}", token)
            token = np.maximum(token, 0) if j < layers - 1 else token
        masks.append(np.einsum("c,chw->hw", token, pixels))
    return np.stack(masks)


def first_stage(p: Params, image: Array, pe: Array, dense: Array) -> tuple[Array, Array]:
    """Logits `[T, 4 G, 4 G]` and upscaled embedding."""
    tokens = np.concatenate([p["iou_token.weight"], p["mask_tokens.weight"]])
    out, keys = transformer(p, "transformer", image + dense, pe, tokens, None)
    pixels = upscale(p, keys)
    return masks_of(p, "output_hypernetworks_mlps", 3, out[1:], pixels), pixels


def second_stage(p: Params, image: Array, pe: Array, dense: Array, logits: Array, upscaled: Array) -> Array:
    """Logits `[T, 16 G, 16 G]`."""
    centre = (logits[:, 1::4] + logits[:, 2::4]) / 2  # bilinear at factor 4: the middle 2 x 2 of every 4 x 4
    centre = (centre[:, :, 1::4] + centre[:, :, 2::4]) / 2
    prior = softmax(centre, 0).reshape(len(logits), -1)
    out, keys = transformer(p, "transformer2", 2 * (image + dense), pe, p["mask_tokens.weight"], prior)
    x = np.concatenate([upscale(p, keys), upscaled])
    x = gelu(norm2d(p, "skip_connect.1", up(p, "skip_connect.0", x)))
    x = gelu(norm2d(p, "skip_connect.4", up(p, "skip_connect.3", x)))
    return masks_of(p, "output_hypernetworks_mlps2", 5, out, x)
