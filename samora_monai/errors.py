"""The errors that a user can mend.

Library code raises them like any `ValueError`. In a bundle run `samora_monai.engine.startup` prints them as the one
sentence they are, instead of MONAI's nested traceback, and the process ends with exit code 1.
Each message is one line: the thing, what was expected, what was got, the remedy.
"""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave (a file, a folder, a setting) is not what was expected."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that the user named is not there."""

    def __str__(self) -> str:  # OSError would print an errno tuple
        return str(self.args[0]) if self.args else ""
