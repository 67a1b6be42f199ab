"""The search for a user's mistake behind other exceptions; `test_startup` shows it in real runs."""

from __future__ import annotations

import logging
import sys
from itertools import pairwise

import pytest

from samora_monai.errors import InputError, MissingFileError, user_message
from samora_monai.workflow.error_hook import install_error_hook

WORKER_TEXT = """Caught RuntimeError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "x.py", line 1, in f
samora_monai.errors.MissingFileError: 'a.nii' is not there; check it

The above exception was the direct cause of the following exception:

RuntimeError: applying transform X
"""


def chained(*errors):
    """The last of `errors`, each raised from the one before it."""
    for cause, error in pairwise(errors):
        error.__cause__ = cause
    return errors[-1]


def test_finds_the_cause():
    assert user_message(chained(InputError("mend it"), KeyError("a"), RuntimeError("outer"))) == "mend it"
    assert user_message(MissingFileError("'a' is not there")) == "'a' is not there"
    assert user_message(RuntimeError(WORKER_TEXT)) == "'a.nii' is not there; check it"
    assert user_message(chained(InputError(WORKER_TEXT), RuntimeError("outer"))) == "'a.nii' is not there; check it"
    during_handling = RuntimeError("outer")
    during_handling.__context__ = InputError("mend it")
    assert user_message(during_handling) == "mend it"


def test_leaves_other_errors_alone():
    assert user_message(None) is None
    assert user_message(chained(ValueError("a"), RuntimeError("InputError: b"))) is None
    cycle = RuntimeError("a")
    cycle.__context__ = ValueError("b")
    cycle.__context__.__context__ = cycle
    assert user_message(cycle) is None


@pytest.fixture()
def hook():
    """The error hook, uninstalled afterwards."""
    before = sys.excepthook, logging.getLogRecordFactory()
    install_error_hook()
    install_error_hook()  # a second call changes nothing
    yield sys.excepthook
    sys.excepthook = before[0]
    logging.setLogRecordFactory(before[1])


def test_prints_one_line_or_the_traceback(hook, capsys):
    error = chained(InputError("mend it"), RuntimeError("outer"))
    hook(type(error), error, None)
    assert capsys.readouterr().err == "error: mend it\n"
    error = RuntimeError("a bug")
    hook(type(error), error, None)
    assert "RuntimeError: a bug" in capsys.readouterr().err


def test_log_is_silent_about_a_users_mistake_only(hook, caplog):
    logger = logging.getLogger("engine")
    for error in (InputError("mend it"), RuntimeError("a bug")):
        try:
            raise error
        except ValueError as caught:
            logger.error("terminating due to %s", caught)
            logger.warning("a warning stays")
        except RuntimeError as caught:
            logger.error("terminating due to %s", caught)
    assert [r.getMessage() for r in caplog.records if r.levelno >= 0] == ["a warning stays", "terminating due to a bug"]
