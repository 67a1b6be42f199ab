"""Pictures of segmentations and of what an expert learned."""

from samora_monai.pictures import denoising, expert, neighbours, overlay, panels, tokens

__all__ = ["denoising", "expert", "neighbours", "overlay", "panels", "tokens"]
