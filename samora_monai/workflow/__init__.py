"""What a bundle run needs around its engines: start-up checks, cases, weights, summary, processes."""

from samora_monai.settings import check_run_settings
from samora_monai.workflow import error_hook, overrides, processes, startup, summary, weights
from samora_monai.workflow.cases import RunCases, model_to_train, resolve_cases
from samora_monai.workflow.startup import check_held_out, start

__all__ = [
    "RunCases",
    "check_held_out",
    "check_run_settings",
    "error_hook",
    "model_to_train",
    "overrides",
    "processes",
    "resolve_cases",
    "start",
    "startup",
    "summary",
    "weights",
]
