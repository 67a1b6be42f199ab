"""What a bundle run needs around its engines: start-up checks, cases, weights, summary, processes."""

from samora_monai.workflow import error_hook, origin, overrides, processes, startup, summary, tracking, weights

__all__ = ["error_hook", "origin", "overrides", "processes", "startup", "summary", "tracking", "weights"]
