"""SAMora for MONAI: SAM with self-supervised low-rank experts, fused by HL-Attn, for medical segmentation.

Paper: SAMora, ICCV 2025. The package holds what no library has; everything else is MONAI, Ignite and torch.
Bundle configs say ``$import samora_monai`` and use everything from there.
"""

__version__ = "0.1.0"

from samora_monai import checkpoints, data, engine, losses, metrics, networks

__all__ = ["__version__", "checkpoints", "data", "engine", "losses", "metrics", "networks"]
