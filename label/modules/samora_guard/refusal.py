"""The error of a refused request."""

from __future__ import annotations


class Refusal(Exception):
    """A request that the guard answers itself.

    Args:
        status: HTTP status, 4xx.
        reason: one sentence for the client.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def shown(value: object) -> str:
    """A value of a request as it is repeated in a sentence and in the log: escaped, at most 60 characters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
