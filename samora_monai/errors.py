"""Errors that a user can correct.

Library code raises them like any `ValueError`. In a bundle run, `samora_monai.workflow.start` prints only their message
in place of MONAI's nested traceback, and the process ends with exit code 1.
Each message is one line: the thing, what was expected, what was got, the remedy.
"""

from __future__ import annotations

import re

_IN_WORKER_TEXT = re.compile(r"^samora_monai\.errors\.\w+: (.+)$", re.MULTILINE)


class InputError(ValueError):
    """An input of the user (a file, a folder, a setting) is not what was expected."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that the user named does not exist."""

    def __str__(self) -> str:  # OSError would print an errno tuple
        return str(self.args[0]) if self.args else ""


def input_error(error: BaseException | None) -> InputError | None:
    """Return the `InputError` behind `error`, or None if there is none.

    Follows `__cause__`, or else `__context__`. An exception that crossed a process boundary carries its traceback as
    text; the error is restored from that text.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error)
        if "Original Traceback" in text and (in_worker := _IN_WORKER_TEXT.search(text)):
            return InputError(in_worker[1])
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None


def user_message(error: BaseException | None) -> str | None:
    """Return the message of the `InputError` behind `error`, or None if there is none."""
    found = input_error(error)
    return None if found is None else str(found)


def one_line(error: Exception) -> str:
    """Return an exception's text as one line of at most 200 characters, without the source positions of ITK."""
    text = " ".join((str(error) or type(error).__name__).split("ITK ERROR:")[-1].split())
    return text if len(text) <= 200 else text[:197] + "..."
