"""Several processes share the work: gloo here, nccl where there are GPUs."""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path

import pytest
import torch

from samora_monai.networks import build_segmenter
from tests.bundles.command_line import FAST, ROOT, TIMEOUT, Bundle, CommandLine, Finished, files
from tests.bundles.conftest import Trained

Launch = Callable[..., list[Finished]]


@pytest.fixture(params=["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def launch(request: pytest.FixtureRequest) -> Launch:
    """Runs a workflow in two processes; what each left, or together under the real torchrun."""

    def forked(bundle: Bundle, workflow: str, overlay: str, **settings: object) -> list[Finished]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "forked"}
        ranks = [env | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        started = [bundle.start(workflow, overlay, env=env, **settings) for env in ranks]
        running = [process for process, _ in started]
        while running:  # as torchrun does: one that fails takes the others with it
            if not connection.wait([process.sentinel for process in running], TIMEOUT):
                break  # `wait` tells
            failed = any(process.exitcode for process, _ in started)
            running = [process for process in running if process.is_alive()]
            for process in running if failed else ():
                process.terminate()
        return [wait() for _, wait in started]

    def torchrun(bundle: Bundle, workflow: str, overlay: str, **settings: object) -> list[Finished]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        words = [*launcher, "-m", "monai.bundle", *bundle.arguments(workflow, overlay, **settings)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, cwd=bundle.root.parent, env=env, capture_output=True, text=True, check=False)
        return [Finished(done.returncode, done.stdout, done.stderr)]

    return torchrun if request.param == "torchrun" else forked


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def uneven(data: Path) -> Path:
    """One scan for training and three for validation: the first process has two of them, the second one."""
    lists = json.loads((data / "dataset.json").read_text())
    lists["validation"].append(lists["training"].pop())
    (data / "dataset.json").write_text(json.dumps(lists))
    return data


def events(folder: Path) -> int:
    """How many files TensorBoard's writers made."""
    return len(list(folder.glob("events.*")))


@pytest.mark.parametrize("encoder", ["tiny", "sam2_mini"])
def test_training(launch: Launch, bundle: Bundle, trained: Trained, phantoms: Path, encoder: str):
    """One model of the network itself; the first process alone tells and writes."""
    settings = FAST | {"encoder": encoder}
    finished = launch(bundle, "training", "multi_gpu_train.yaml", dataset_dir=phantoms, **settings)
    assert [f.code for f in finished] == [0] * len(finished), finished
    out = "".join(f.out for f in finished)
    assert "x 2 processes" in out
    assert out.count("epoch 2/2") == 1 and out.count("validation mean Dice") == 2
    assert sorted(os.listdir(bundle.root / "models")) == ["model.json", "model.pt"]
    state = torch.load(bundle.model, weights_only=True)
    assert list(state) == list(build_segmenter(encoder, 64, num_classes=6).state_dict())
    assert torch.load(bundle.root / "eval" / "last.pt", weights_only=True)["trainer"]["iteration"] == 4  # of 8 slices
    assert events(bundle.root / "eval") == events(trained.output_dir)  # as one process leaves


def test_gradient_is_that_of_one_process(
    launch: Launch, bundle: Bundle, phantoms: Path, command_line: CommandLine, tmp_path: Path
):
    """One batch of all 16 slices, or two halves: the first step of AdamW remembers a tenth of the gradient."""
    settings = FAST | {"dataset_dir": phantoms, "epochs": 1, "train::random_transforms": "[]"}
    other, gradients = Bundle(tmp_path / "other", command_line), []
    assert other("training", **settings | {"batch_size": 16}).code == 0
    finished = launch(bundle, "training", "multi_gpu_train.yaml", **settings | {"batch_size": 8})
    assert [f.code for f in finished] == [0] * len(finished), finished
    for root in (other.root, bundle.root):
        state = torch.load(root / "eval" / "last.pt", weights_only=True)["optimizer"]["state"]
        assert all(parameter["step"] == 1 for parameter in state.values())
        gradients.append(torch.cat([parameter["exp_avg"].flatten() for parameter in state.values()]))
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[0].norm()


@pytest.mark.slow
def test_training_on_two_nodes(bundle: Bundle, phantoms: Path):
    """As docs/many_processes.md starts them, on one machine: two launchers of one process each that meet at a port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        end = f"127.0.0.1:{free.getsockname()[1]}"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    launcher += ["--rdzv_id=1", "--rdzv_backend=c10d", f"--rdzv_endpoint={end}", "-m", "monai.bundle"]
    words = [*launcher, *bundle.arguments("training", "multi_gpu_train.yaml", dataset_dir=phantoms, **FAST)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(words, cwd=bundle.root.parent, env=env, **pipes) for _ in range(2)]
    out = "".join(node.communicate(timeout=2 * TIMEOUT)[0] for node in nodes)
    assert [node.returncode for node in nodes] == [0, 0], out
    assert "x 2 processes" in out and out.count("epoch 2/2") == 1
    assert torch.load(bundle.root / "eval" / "last.pt", weights_only=True)["trainer"]["iteration"] == 4


def test_evaluation_is_that_of_one_process(launch: Launch, trained: Trained, uneven: Path, tmp_path: Path):
    single = trained.bundle("evaluating", dataset_dir=uneven, output_dir=tmp_path / "one")
    assert single.code == 0
    settings = {"dataset_dir": uneven, "output_dir": tmp_path / "two"}
    finished = launch(trained.bundle, "evaluating", "multi_gpu_evaluate.yaml", **settings)
    assert [f.code for f in finished] == [0] * len(finished), finished
    for name in ("metrics.csv", "summary.csv"):
        one, two = rows(tmp_path / "one", name), rows(tmp_path / "two", name)
        assert len(one) == len(two) > 5
        for a, b in zip(one, two, strict=True):
            assert list(a) == list(b)
            for key, value in a.items():
                assert b[key] == value or float(b[key]) == pytest.approx(float(value), abs=1e-6), (name, key)
    assert "".join(f.out for f in finished).count("3 cases; details in") == 1
    pages = ((tmp_path / part / "report.html").read_text(encoding="utf-8") for part in ("one", "two"))
    first, second = (re.findall(r'<h3>.*</h3>|src="[^"]+"', page) for page in pages)
    assert first == second and len(first) == 3 + 3 * 3  # the same three cases on the same slices


def test_mistake_of_one_process_ends_both(launch: Launch, trained: Trained, data: Path, tmp_path: Path):
    """The second process reads the fourth scan; the first must not wait for it."""
    scan = data / "imagesVal" / "phantom_004.nii.gz"
    scan.write_bytes(scan.read_bytes()[:1000])
    finished = launch(trained.bundle, "evaluating", "multi_gpu_evaluate.yaml", dataset_dir=data, output_dir=tmp_path)
    assert all(f.code != 0 for f in finished)
    assert f"error: cannot read '{scan}'" in "".join(f.err for f in finished)
    assert not (tmp_path / "metrics.csv").exists() and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("workflow", ["training", "evaluating"])
def test_empty_data_folder(launch: Launch, trained: Trained, tmp_path: Path, workflow: str):
    (tmp_path / "data").mkdir()
    overlay = {"training": "multi_gpu_train.yaml", "evaluating": "multi_gpu_evaluate.yaml"}[workflow]
    settings = FAST if workflow == "training" else {}
    finished = launch(
        trained.bundle, workflow, overlay, dataset_dir=tmp_path / "data", output_dir=tmp_path / "out", **settings
    )
    assert all(f.code != 0 for f in finished), finished
    lines = [line for f in finished for line in f.complaints if "error: " in line]
    # torch tells the rank; torchrun may stop the second process before it gets there
    expected = rf"(\[rank[01]\]: )?error: no cases in '{tmp_path}/data'; expected .*"
    assert 1 <= len(lines) <= 2 and all(re.fullmatch(expected, line) for line in lines), finished
    assert not any("samora_monai.errors" in f.err for f in finished)


@pytest.mark.parametrize("workflow", ["training", "evaluating"])
def test_fewer_scans_than_processes(launch: Launch, trained: Trained, data: Path, tmp_path: Path, workflow: str):
    lists = json.loads((data / "dataset.json").read_text())
    lists["training"].append(lists["validation"].pop())
    (data / "dataset.json").write_text(json.dumps(lists))
    overlay = {"training": "multi_gpu_train.yaml", "evaluating": "multi_gpu_evaluate.yaml"}[workflow]
    settings = {"dataset_dir": data, "output_dir": tmp_path / "out"} | (FAST if workflow == "training" else {})
    before = files(trained.bundle.root)
    finished = launch(trained.bundle, workflow, overlay, **settings)
    assert all(f.code != 0 for f in finished), finished
    lines = [line for f in finished for line in f.complaints if "error: " in line]
    expected = (
        r"(\[rank[01]\]: )?error: 2 processes cannot share 1 validation scans; start fewer with --nproc_per_node.*"
    )
    assert 1 <= len(lines) <= 2 and all(re.fullmatch(expected, line) for line in lines), finished
    assert not any("samora_monai.errors" in f.err for f in finished)
    assert files(trained.bundle.root) == before
