"""Switches, numbers in their range, optional files."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from samora_monai.errors import InputError
from samora_monai.settings import check_run_settings, file_or_none, flag


@pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False), ("true", True), ("False", False)])
def test_flag(value, expected):
    assert flag(value) is expected


def test_flag_refuses_anything_else():
    with pytest.raises(InputError, match="expected true or false for a switch, got 'maybe'"):
        flag("maybe")


@pytest.mark.parametrize("value", [None, "", "none", "None", "NULL"])
def test_no_file(value):
    assert file_or_none(value) is None
    assert file_or_none("nonesuch.pt") == "nonesuch.pt"


def test_accepts_the_edges_of_each_range():
    counts = {"epochs": 1, "batch_size": 1, "val_interval": 1, "slices_per_pass": 1, "decoder_features": 1}
    check_run_settings(**counts, warmup=0, num_workers=0, seed=0, learning_rate=1e-9, weight_decay=0, dice_weight=0.0)
    check_run_settings(noise=1, temperature=0.1)
    check_run_settings(max_gradient_norm=None)
    check_run_settings(unlabeled_weight=1, confidence=0, ramp_up=0.0)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 0, "a whole number of at least 1, got 0"),
        ("batch_size", 2.5, "a whole number of at least 1, got 2.5"),
        ("batch_size", True, "a whole number of at least 1, got True"),
        ("seed", -1, "a whole number of at least 0, got -1"),
        ("seed", None, "a whole number of at least 0, got None"),
        ("warmup", "many", "a whole number of at least 0, got 'many'"),
        ("learning_rate", 0, "a number above 0, got 0"),
        ("learning_rate", math.nan, "a number above 0, got nan"),
        ("noise", math.inf, "a number above 0, got inf"),
        ("weight_decay", -0.1, "a number of at least 0, got -0.1"),
        ("weight_decay", "0.1", "a number of at least 0, got '0.1'"),
        ("temperature", 0.0, "a number above 0, got 0.0"),
        ("confidence", 95, "a number from 0 to 1, got 95"),
        ("max_gradient_norm", 0, "a number above 0, got 0"),
        ("ramp_up", None, "a number from 0 to 1, got None"),
    ],
)
def test_refuses_a_value_out_of_range(name: str, value: Any, expected: str):
    with pytest.raises(InputError, match=re.escape(f"{name} must be {expected}; give --{name} ")):
        check_run_settings(**{"val_interval": 1, name: value})


def test_a_setting_without_a_rule_is_an_error_of_the_config():
    with pytest.raises(KeyError, match="epoch"):
        check_run_settings(epoch=1)
