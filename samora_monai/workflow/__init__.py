"""What a bundle run needs around its engines: start-up checks, cases, weights, summary, processes."""

from samora_monai.workflow import error_hook, overrides, processes, startup, summary, tracking, weights
from samora_monai.workflow.cases import RunCases, model_to_train, resolve_cases

__all__ = [
    "RunCases",
    "error_hook",
    "model_to_train",
    "overrides",
    "processes",
    "resolve_cases",
    "startup",
    "summary",
    "tracking",
    "weights",
]
