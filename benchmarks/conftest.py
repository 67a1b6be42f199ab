"""The tests of the studies begin from the same seed as those of the package."""

from tests.conftest import pytest_runtest_setup  # noqa: F401
