"""Real `monai.bundle run` processes: a user's mistake is one line, a bug keeps its traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = """
imports: [$import torch, $import mistakes, $import samora_monai]
mistake: in_worker
device: cpu
spare: 1
workers: 2
transform: {_target_: Compose, transforms: [{_target_: mistakes.Mistake, kind: '@mistake'}]}
dataset: {_target_: Dataset, data: '$list(range(4))', transform: '@transform'}
cached: {_target_: CacheDataset, data: '$list(range(4))', transform: '@transform', num_workers: 2, progress: false}
component: {_target_: mistakes.fail}
network: {_target_: torch.nn.Conv2d, in_channels: 1, out_channels: 1, kernel_size: 1}
train:
  trainer:
    _target_: SupervisedTrainer
    device: '@device'
    max_epochs: 1
    train_data_loader: {_target_: DataLoader, dataset: '@dataset', batch_size: 1, num_workers: '@workers'}
    network: '@network'
    loss_function: '$mistakes.loss'
    optimizer: {_target_: torch.optim.SGD, params: '$@network.parameters()', lr: 0.1}
    train_handlers:
    - {_target_: StatsHandler, output_transform: "$lambda x: x[0]['loss']"}
initialize: [$samora_monai.workflow.start(@device), "$print('after the start', chr(0xdcfc))"]
training: [$@train::trainer.run()]
cache: [$@cached]
create: [$@component]
"""
MISTAKES = """
import torch
from monai.transforms import Transform
from samora_monai.errors import InputError, MissingFileError

def fail():
    raise MissingFileError("'a.nii' is not there; check it")

def loss(pred, label):
    return 1 / 0

class Mistake(Transform):
    def __init__(self, kind):
        self.kind = kind

    def __call__(self, i):
        if i == 2 and self.kind == "in_worker":
            raise InputError(f"scan {i} is broken; mend it")
        return {"image": torch.zeros(1, 2, 2), "label": torch.zeros(1, 2, 2)}
"""


@pytest.fixture()
def bundle_run(tmp_path):
    """`bundle_run(RUN_ID, ...)` in a fresh process -> exit code, stdout, stderr after MONAI's own first warning."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text(CONFIG)
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    environment["PYTHONIOENCODING"] = "utf-8"  # strict, whatever the locale

    def run(*arguments, launcher=("-m",)):
        command = [sys.executable, *launcher, "monai.bundle", "run", *arguments, "--config_file", "configs/train.yaml"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("parsing config_file")]
        return done.returncode, done.stdout, lines

    return run


def test_misspelt_setting_stops_before_anything_else(bundle_run):
    code, out, err = bundle_run("training", "--worker", "0")
    assert (code, err) == (1, ["error: unknown setting 'worker' in configs/train.yaml; did you mean 'workers'?"])
    assert "after the start" not in out


def test_mistake_in_a_worker_of_a_running_engine(bundle_run):
    code, out, err = bundle_run("training", "--train::trainer::loss_function", "$torch.nn.MSELoss()")
    assert (code, err) == (1, ["error: scan 2 is broken; mend it"])
    assert "after the start \\udcfc" in out  # part of a file name that is no UTF-8
    assert "Traceback" not in out and "terminating" not in out  # neither Ignite's nor StatsHandler's record


def test_device_that_is_not_there(bundle_run):
    code, out, err = bundle_run("training", "--device", "cuda:99", "--spare", "2")
    assert code == 1 and len(err) == 2 and err[1].startswith("error: device 'cuda:99' cannot be used (")
    assert err[0] == "--spare has no effect in 'training'"
    assert "after the start" not in out


def test_misspelt_argument_of_a_component(bundle_run):
    message = "unknown setting 'train::trainer::max_epoch': SupervisedTrainer has no argument 'max_epoch'"
    code, _, err = bundle_run("training", "--train::trainer::max_epoch", "3")
    assert (code, err) == (1, [f"error: {message}; did you mean 'max_epochs'?"])


@pytest.mark.slow
def test_bug_keeps_its_traceback(bundle_run):
    code, out, err = bundle_run("training", "--mistake", "none", "--workers", "0")
    assert code == 1
    assert "ZeroDivisionError: division by zero" in err
    assert "terminating due to exception: division by zero" in out + "\n".join(err)


@pytest.mark.slow
def test_mistakes_while_building(bundle_run):
    assert bundle_run("create")[::2] == (1, ["error: 'a.nii' is not there; check it"])
    assert bundle_run("cache")[::2] == (1, ["error: scan 2 is broken; mend it"])
    in_process = bundle_run("training", "--workers", "0", "--train::trainer::loss_function", "$torch.nn.MSELoss()")
    assert in_process[::2] == (1, ["error: scan 2 is broken; mend it"])


@pytest.mark.slow
def test_one_line_per_process_under_torchrun(bundle_run):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    code, _, err = bundle_run("cache", launcher=launcher)
    assert code != 0
    lines = [line for line in err if line.startswith("error:")]
    # torchrun may stop the second process before it gets there
    assert 1 <= len(lines) <= 2 and set(lines) == {"error: scan 2 is broken; mend it"}
    assert not any("mistakes.py" in line for line in err)  # no traceback of ours


LIGHT = """
import sys
import {modules}
print(*(name for name in {heavy} if name in sys.modules))
"""


def loaded(modules: str, heavy: list[str]) -> list[str]:
    """Those of `heavy` that `import modules` loads in a fresh process."""
    code = LIGHT.format(modules=modules, heavy=heavy)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


HEAVY = ["matplotlib", "tensorboard", "fire", "itk", "samora_monai.report", "samora_monai.pictures"]


def test_package_alone_imports_nothing_heavy():
    assert loaded("samora_monai", [*HEAVY, "torch", "monai"]) == []


def test_rooms_of_a_run_import_nothing_heavy_beyond_monai():
    rooms = "samora_monai." + ", samora_monai.".join(("networks", "data", "checkpoints", "handlers", "workflow"))
    assert loaded(rooms, HEAVY) == loaded("monai, monai.bundle, ignite.handlers", HEAVY)
