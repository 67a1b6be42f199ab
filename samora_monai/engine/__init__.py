"""The glue that makes a MONAI workflow pleasant: start-up checks, progress, checkpoints, reports."""

from samora_monai.engine import (
    checkpoint,
    distributed,
    inference_log,
    inferer,
    overlay,
    progress,
    report,
    schedule,
    settings,
    startup,
    summary,
    weights,
)

__all__ = [
    "checkpoint",
    "distributed",
    "inference_log",
    "inferer",
    "overlay",
    "progress",
    "report",
    "schedule",
    "settings",
    "startup",
    "summary",
    "weights",
]
