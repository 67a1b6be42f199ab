"""The glue that makes a MONAI workflow pleasant: start-up checks, progress, checkpoints, reports."""

from samora_monai.engine import (
    checkpoint,
    distributed,
    inference_log,
    inferer,
    nan_guard,
    origin,
    overlay,
    overrides,
    progress,
    report,
    schedule,
    settings,
    startup,
    summary,
    validation,
    weights,
)

__all__ = [
    "checkpoint",
    "distributed",
    "inference_log",
    "inferer",
    "nan_guard",
    "origin",
    "overlay",
    "overrides",
    "progress",
    "report",
    "schedule",
    "settings",
    "startup",
    "summary",
    "validation",
    "weights",
]
