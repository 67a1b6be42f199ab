"""A user's mistake as one line on stderr instead of MONAI's nested tracebacks.

MONAI raises a RuntimeError for each level of a config (`... from error`), Ignite and MONAI's handlers log the exception
too, and a data loader's worker hands over its traceback as text. In all of them the InputError is found again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from samora_monai.errors import user_message


def install_error_hook() -> None:
    """From now on an uncaught exception with an InputError behind it is printed as `error: <its line>`.

    The exit code stays 1, and every other exception keeps its traceback. Error records that are logged while such an
    exception is handled reach no log handler. Calling it again changes nothing.
    """
    if not isinstance(sys.excepthook, _Hook):
        sys.excepthook = _Hook(sys.excepthook)
        logging.setLogRecordFactory(_RecordFactory(logging.getLogRecordFactory()))


class _Hook:
    def __init__(self, otherwise: Callable[..., Any]) -> None:
        self.otherwise = otherwise

    def __call__(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        message = user_message(error)
        if message is None:
            self.otherwise(kind, error, traceback)
        else:
            sys.stdout.flush()
            print(f"error: {message}", file=sys.stderr, flush=True)


class _RecordFactory:
    """Puts the records about a user's mistake below every handler's level.

    A factory, because MONAI's handlers log through loggers with their own handlers, which are made after the start.
    """

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self.make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.make(*args, **kwargs)
        # the exception is looked up, since Ignite logs "run is terminating due to exception" without exc_info
        if record.levelno >= logging.ERROR and user_message(sys.exc_info()[1]) is not None:
            record.levelno = logging.NOTSET - 1
        return record
