"""Sizes of small teachers."""

SIMCLR = {"width": 8, "depths": (2, 1, 1, 1), "image_size": 32}
MAE = {
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
    "decoder_embed_dim": 16,
    "decoder_depth": 2,
    "decoder_num_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
