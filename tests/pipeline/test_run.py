"""A pipeline of scripts in place of bundles: order, what is not repeated, failures, kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from samora_monai.pipeline.run import run_stages
from tests.pipeline.conftest import MakeStages
from tests.tiny import refused


def test_stages_run_in_their_order_and_once(
    tmp_path: Path, make_stages: MakeStages, capsys: pytest.CaptureFixture[str]
):
    stages = make_stages(tmp_path / "run")
    (tmp_path / "run").mkdir()
    run_stages(stages, tmp_path / "run", jobs=2, threads=1)
    text = (tmp_path / "run" / "results" / "summary.txt").read_text()
    assert text == "pixel_expert 1\npixel_expert 2\npixel_expert 3+fine_tuning 1\nfine_tuning 2\nfine_tuning 3"
    capsys.readouterr()
    run_stages(stages, tmp_path / "run")
    assert capsys.readouterr().out == "3 of 3 stages were finished earlier\n"
