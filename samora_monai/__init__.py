"""SAMora for MONAI: SAM with self-supervised low-rank experts, fused by HL-Attn, for medical segmentation.

Paper: SAMora, ICCV 2025. The package holds what no library has; everything else is MONAI, Ignite and torch.
"""

__version__ = "0.1.0"
