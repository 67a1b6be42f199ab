"""Each test begins from the same seed, so that a test which passes here passes everywhere."""

from __future__ import annotations

import pytest
from monai.utils import set_determinism


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    set_determinism(0)  # also what MONAI's random transforms begin from; before fixtures of any scope
