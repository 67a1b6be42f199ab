"""A user's mistake as one line on stderr instead of MONAI's nested tracebacks.

MONAI raises a RuntimeError for each level of a config (`... from error`), Ignite and MONAI's handlers log the exception
too, and a data loader's worker passes its traceback on as text. The InputError is found behind all of them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from monai.apps import get_logger

from samora_monai.errors import user_message

# The loggers of MONAI's engines, which Ignite names after the class, and of MONAI's StatsHandler
ENGINE_LOGGERS = tuple(f"ignite.engine.engine.{engine}" for engine in ("SupervisedTrainer", "SupervisedEvaluator"))
STATS_LOGGER = "monai.handlers.StatsHandler"
LOGGERS = (*ENGINE_LOGGERS, STATS_LOGGER)


def install_error_hook() -> None:
    """Print an uncaught exception with an InputError behind it as `error: <its line>` from now on.

    The exit code stays 1, and every other exception keeps its traceback. Error records that an engine logs while such
    an exception is handled are dropped. A second call changes nothing.
    """
    if getattr(sys.excepthook, "func", None) is not _report:
        sys.excepthook = partial(_report, sys.excepthook)
    get_logger(STATS_LOGGER)  # MONAI gives a logger its stdout handler only when it creates the logger
    for name in LOGGERS:  # they log an exception before it reaches the hook
        logging.getLogger(name).addFilter(is_no_mistake)


def _report(otherwise: Callable[..., Any], kind: type, error: BaseException, traceback: TracebackType | None) -> None:
    if (message := user_message(error)) is None:
        otherwise(kind, error, traceback)
    else:
        sys.stdout.flush()
        print(f"error: {message}", file=sys.stderr, flush=True)


def is_no_mistake(record: logging.LogRecord) -> bool:
    """Logging filter that drops error records while an InputError is handled."""
    # Ignite logs "run is terminating due to exception" without exc_info
    return record.levelno < logging.ERROR or user_message(sys.exc_info()[1]) is None
