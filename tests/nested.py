"""Comparison of checkpoints."""

from __future__ import annotations

from typing import Any

import torch


def assert_equal(got: Any, want: Any, where: str = "") -> None:
    """Two nested states must hold the same keys, bitwise equal tensors and equal values."""
    assert type(got) is type(want), where
    if isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for key in want:
            assert_equal(got[key], want[key], f"{where}/{key}")
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), where
        for i, (ours, theirs) in enumerate(zip(got, want, strict=True)):
            assert_equal(ours, theirs, f"{where}/{i}")
    elif isinstance(want, torch.Tensor):
        assert got.dtype == want.dtype and torch.equal(got, want), where
    else:
        assert got == want, where
