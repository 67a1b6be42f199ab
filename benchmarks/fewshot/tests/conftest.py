"""A study without trained files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fewshot.budget import QUICK, Budget
from benchmarks.fewshot.cell import Study
from benchmarks.fewshot.stage_one import StageOne

MakeStudy = Callable[..., Study]


@pytest.fixture
def make_study(tmp_path: Path) -> MakeStudy:
    """Make the study of a base that consists of `content`."""

    def make(budget: Budget = QUICK, content: bytes = b"base", datalist: str = "dataset.json") -> Study:
        (tmp_path / "base.pt").write_bytes(content)
        data = {"dataset_dir": tmp_path, "datalist": datalist, "modality": "MR"}
        return Study(tmp_path, StageOne(tmp_path, tmp_path / "base.pt", "tiny", data, budget), budget)

    return make
