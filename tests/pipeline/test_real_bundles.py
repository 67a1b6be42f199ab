"""The whole pipeline with real bundles on small phantoms."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from samora_monai.pipeline.command import predict
from tests.nested import assert_equal
from tests.pipeline.plans import write_lists

pytestmark = pytest.mark.slow

RUN = """
import sys
from pathlib import Path
from samora_monai.pipeline.outcome import outcome
from samora_monai.pipeline.run import run_stages
from samora_monai.pipeline.stages import stages_of
from tests.pipeline.plans import tiny_plan
run, base, compare = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == 'True'
stages = stages_of(tiny_plan(base), run, compare)
run_stages(stages, run, jobs=2, threads=1)
print(outcome(stages, run))
"""
TIMEOUT = 900  # seconds


def start(run: Path, base: Path, compare: bool = False) -> subprocess.Popen[str]:
    """The process of a pipeline, the first of a group of its own."""
    words = [sys.executable, "-c", RUN, str(run), str(base), str(compare)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def whole(run: Path, base: Path, compare: bool = False) -> str:
    """Run a pipeline to its end, and return what it prints."""
    process = start(run, base, compare)
    text = process.communicate(timeout=TIMEOUT)[0]
    assert process.returncode == 0, text
    return text


def test_a_killed_pipeline_equals_an_undisturbed_one(tmp_path: Path, phantoms: Path, base: Path):
    """Killed five times at random, in the same folder as the undisturbed one, whose path is in some files."""
    run = tmp_path / "run"
    write_lists(phantoms, run)
    text = whole(run, base, compare=True)
    assert "SAMora  " in text and "SAMed   " in text and f"report  {run}/results/samora/report.html" in text
    undisturbed = run.rename(tmp_path / "undisturbed")
    write_lists(phantoms, run)
    pause = random.Random(0)
    for _ in range(5):
        process = start(run, base, compare=True)
        try:
            process.wait(pause.uniform(12, 40))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    whole(run, base, compare=True)

    weights = sorted(str(file.relative_to(run)) for file in run.rglob("*.pt"))
    assert weights == sorted(str(file.relative_to(undisturbed)) for file in undisturbed.rglob("*.pt"))
    assert {"samora/models/model.pt", "samed/models/model.pt", "bundles/patch_expert/models/expert.pt"} <= set(weights)
    for file in weights:
        assert_equal(*(torch.load(folder / file, weights_only=True) for folder in (run, undisturbed)), file)
    labels = sorted(str(file.relative_to(run)) for file in (run / "predictions").iterdir())
    assert len(labels) == 2
    for file in [*labels, "results/samora/summary.csv", "results/samed/metrics.csv"]:
        assert (run / file).read_bytes() == (undisturbed / file).read_bytes(), file


def test_one_labelled_scan_is_enough(tmp_path: Path, phantoms: Path, base: Path):
    run = tmp_path / "run"
    write_lists(phantoms, run, validation=False)
    text = whole(run, base)
    assert "Dice of one scan\n" in text and "the figures are of the training scans" in text
    report = (run / "results" / "samora" / "report.html").read_text()
    assert "1 (training)" in report and report.count("These are the scans that the model was trained on.") == 2
    assert len(list((run / "predictions").rglob("*_seg.nii.gz"))) == 4  # in the folders of their scans

    scan = next((phantoms / "imagesVal").iterdir())
    assert predict(run, scan, tmp_path / "out", device="cpu") == 0
    (label,) = (tmp_path / "out").iterdir()
    assert label.read_bytes() == (run / "predictions" / "imagesVal" / label.name).read_bytes()
