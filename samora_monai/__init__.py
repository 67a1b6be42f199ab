"""SAMora for MONAI: SAM with self-supervised low-rank experts, fused by HL-Attn, for medical segmentation.

Paper: SAMora, ICCV 2025. Bundle configs say `$import samora_monai` and reach every room of the package from there;
a room is imported when it is first used.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

ROOMS = (
    "checkpoints",
    "data",
    "federated",
    "handlers",
    "inference",
    "losses",
    "metrics",
    "networks",
    "pictures",
    "pretraining",
    "public_data",
    "report",
    "schedules",
    "selection",
    "semi_supervised",
    "settings",
    "synthetic",
    "workflow",
)


def __getattr__(name: str) -> ModuleType:
    if name in ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
