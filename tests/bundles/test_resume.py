"""A training that was killed goes on where it was."""

from __future__ import annotations

import csv
import re
import signal
from pathlib import Path

import pytest
import torch

from tests.bundles.command_line import FAST, Bundle, wait_until


def test_killed_training_goes_on(bundle: Bundle, phantoms: Path, tmp_path: Path):
    last = bundle.root / "eval" / "last.pt"
    settings = FAST | {"epochs": 5, "learning_rate": 1e-3}
    saved = set()

    def in_the_third_epoch() -> bool:
        if last.exists():
            saved.add(last.stat().st_mtime_ns)
        return len(saved) == 2

    process, wait = bundle.start("training", dataset_dir=phantoms, **settings)
    wait_until(in_the_third_epoch, process)
    process.kill()
    assert wait().code == -signal.SIGKILL
    done = torch.load(last, weights_only=True)["trainer"]["iteration"] // 4  # 16 slices in fours
    assert 2 <= done < 5

    finished = bundle("training", dataset_dir=phantoms, resume="true", **settings)
    assert (finished.code, finished.complaints) == (0, [])
    assert f"resuming after epoch {done} from {last}" in finished.out
    epochs = [int(epoch) for epoch in re.findall(r"^epoch (\d)/5", finished.out, re.MULTILINE)]
    assert epochs == list(range(done + 1, 6))
    assert torch.load(last, weights_only=True)["trainer"]["iteration"] == 20

    # the model on disk is the one that was best before or after the kill
    evaluation = bundle("evaluating", dataset_dir=phantoms, output_dir=tmp_path / "out")
    assert (evaluation.code, evaluation.complaints) == (0, [])
    with open(tmp_path / "out" / "summary.csv", newline="") as file:
        mean = {row["name"]: float(row["dice"]) for row in csv.DictReader(file)}["mean"]
    best = re.findall(r"\(best (\S+) at epoch \d", finished.out)[-1]
    assert mean == pytest.approx(float(best), rel=1e-3, abs=1e-4)
