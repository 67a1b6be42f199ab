"""The search for a user's mistake behind other exceptions; `test_startup` shows it in real runs."""

from __future__ import annotations

import logging
import sys
from itertools import pairwise

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import StatsHandler

from samora_monai.errors import InputError, MissingFileError, user_message
from samora_monai.workflow.error_hook import ENGINE_LOGGERS, LOGGERS, install_error_hook, is_no_mistake

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
    before = sys.excepthook
    install_error_hook()
    install_error_hook()  # a second call changes nothing
    yield sys.excepthook
    sys.excepthook = before
    for name in LOGGERS:
        assert logging.getLogger(name).filters == [is_no_mistake]
        logging.getLogger(name).removeFilter(is_no_mistake)


@pytest.fixture()
def records():
    """What passes the filters of the loggers, as a list that grows."""
    handler, found = logging.Handler(), []
    handler.emit = found.append
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    yield found
    for name in LOGGERS:
        logging.getLogger(name).removeHandler(handler)


def test_prints_one_line_or_the_traceback(hook, capsys):
    error = chained(InputError("mend it"), RuntimeError("outer"))
    hook(type(error), error, None)
    assert capsys.readouterr().err == "error: mend it\n"
    error = RuntimeError("a bug")
    hook(type(error), error, None)
    assert "RuntimeError: a bug" in capsys.readouterr().err


@pytest.mark.parametrize("name", LOGGERS)
def test_log_is_silent_about_a_users_mistake_only(hook, records, name):
    logger = logging.getLogger(name)
    for error in (InputError("mend it"), RuntimeError("a bug")):
        try:
            raise error
        except ValueError as caught:
            logger.error("terminating due to %s", caught)
            logger.warning("a warning stays")
        except RuntimeError as caught:
            logger.error("terminating due to %s", caught)
    assert [record.getMessage() for record in records] == ["a warning stays", "terminating due to a bug"]


def test_the_engines_of_monai_log_where_the_filter_is(hook, records):
    """Fails if Ignite or MONAI name their loggers otherwise; the bundles have no other engines."""
    arguments = {"device": torch.device("cpu"), "network": torch.nn.Identity()}
    trainer = SupervisedTrainer(max_epochs=1, train_data_loader=[1], optimizer=None, loss_function=None, **arguments)  # type: ignore[arg-type]
    engines = [trainer, SupervisedEvaluator(val_data_loader=[1], **arguments)]  # type: ignore[arg-type]
    assert [engine.logger.name for engine in engines] == list(ENGINE_LOGGERS)

    def fail(engine):
        raise InputError("mend it")

    for engine in engines:
        stats = StatsHandler(iteration_log=False)
        assert stats.logger.name in LOGGERS and stats.logger.handlers  # it still prints
        stats.attach(engine)
        engine.add_event_handler(Events.STARTED, fail)
        with pytest.raises(InputError, match="mend it"):
            engine.run()
    assert not [record for record in records if record.levelno >= logging.ERROR]
