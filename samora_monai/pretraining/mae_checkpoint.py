"""The layout of MAE's checkpoints: sizes of the network, keys of the decoder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def of_decoder(key: str) -> bool:
    """Whether the key is of the decoder, which Meta's encoder-only files lack."""
    return key.startswith("decoder_") or key == "mask_token"


def sizes(preset: Mapping[str, int]) -> tuple[int, ...]:
    """Width, depth, side of a patch; width and depth of the decoder. A state dict does not show the number of heads."""
    return tuple(preset[key] for key in ("embed_dim", "depth", "patch_size", "decoder_embed_dim", "decoder_depth"))


def sizes_of(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """`sizes` of a state dict; the first three of them if it holds an encoder alone."""
    depth, decoder_depth = (
        len({key.split(".")[1] for key in state if key.startswith(prefix)}) for prefix in ("blocks.", "decoder_blocks.")
    )
    encoder = (state["cls_token"].shape[-1], depth, state["patch_embed.proj.weight"].shape[-1])
    return (*encoder, state["mask_token"].shape[-1], decoder_depth) if "mask_token" in state else encoder


def in_words(sizes: tuple[int, ...]) -> str:
    """E.g. `"ViT 1024 wide, 24 deep, patches of 16, decoder 512 wide, 8 deep"`."""
    decoder = ", decoder {} wide, {} deep".format(*sizes[3:]) if sizes[3:] else ""
    return "ViT {} wide, {} deep, patches of {}".format(*sizes[:3]) + decoder
