"""MONAI Label end to end, with the requests of its clients: `make test-label`, in the environment of `make label`.

The tests of each system share a server, and each continues from the state that the one before it left.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from samora_monai.checkpoints import read_model_settings
from samora_monai.synthetic.phantoms import CLASS_NAMES, write_phantoms
from tests.bundles.test_workflow import write_dicom
from tests.label.models import write_model
from tests.label.server import LABEL_PYTHON, NAME, ROOT, Server

DECODERS = {"SAMora": "sam", "H-SAMora": "hierarchical"}
LABELLED = ("phantom_001", "phantom_002", "phantom_003")
OTHERS = ("phantom_004", "from_dicom")  # the first is neither RAS nor isotropic


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four labelled phantoms, and one that was DICOM, converted as MONAI Label converts scans from DICOMweb."""
    folder = tmp_path_factory.mktemp("scans")
    write_phantoms(folder, num_training=4, num_validation=1, shape=(48, 48, 8))
    write_dicom(folder / "series", folder / "imagesVal" / "phantom_005.nii.gz")
    convert = (
        "import shutil, sys; from monailabel.datastore.utils.convert import dicom_to_nifti; "
        "shutil.move(dicom_to_nifti(sys.argv[1]), sys.argv[2])"
    )
    target = folder / "imagesTr" / "from_dicom.nii.gz"
    env = os.environ | {"PYTHONPATH": str(ROOT / "label" / "modules")}
    subprocess.run([LABEL_PYTHON, "-c", convert, folder / "series", target], env=env, check=True)
    return folder


@pytest.fixture(scope="module", params=DECODERS)
def server(request: pytest.FixtureRequest, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model of seeded random weights, which predicts every class somewhere, and unlabelled scans."""
    folder = tmp_path_factory.mktemp("server")
    write_model(folder / "bundle", decoder=DECODERS[request.param])
    (folder / "studies").mkdir()
    for name in (*LABELLED, *OTHERS):
        shutil.copy(scans / "imagesTr" / f"{name}.nii.gz", folder / "studies")
    server = Server(folder, folder / "bundle", folder / "studies")
    server.start()
    config = server.served / "configs" / "train.yaml"  # a fast training would predict background only
    config.write_text(config.read_text().replace("learning_rate: 0.005", "learning_rate: 0.0005"))
    yield server
    if server.process.poll() is None:
        server.stop()


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def command_line(server: Server, scans: Path, out: Path) -> Path:
    """The folder of labels that `monai.bundle run inference` writes for `scans` with the served model."""
    arguments = ("--config_file", server.served / "configs" / "inference.json", "--bundle_root", server.served)
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", *arguments, "--dataset_dir", scans]
    command += ["--output_dir", out, "--device", "cpu", "--amp", "false"]
    subprocess.run([str(word) for word in command], check=True, cwd=server.folder, capture_output=True)
    return out


def log_since(server: Server, size: int) -> str:
    return server.log.read_bytes()[size:].decode()


# ---- infer


def test_info_names_the_classes(server: Server):
    info = server.get("/info/").json
    assert info["models"][NAME]["labels"] == {name: value for value, name in enumerate(CLASS_NAMES) if value}
    assert info["models"][NAME]["dimension"] == 3
    assert info["models"][NAME]["config"]["model_filename"] == ["model.pt"]
    assert list(info["trainers"]) == [NAME] and info["datastore"]["total"] == 5


def same_as_command_line(server: Server, folder: Path) -> dict[str, np.ndarray]:
    """Check that the server's labels of `OTHERS` equal the command line's in every voxel, and return them."""
    scans, labels = folder / "scans", {}
    scans.mkdir()
    for name in OTHERS:
        shutil.copy(server.studies / f"{name}.nii.gz", scans)
    expected = command_line(server, scans, folder / "out")
    for name in OTHERS:
        answer = server.infer(name, folder / f"{name}.nii.gz")
        labels[name] = read(answer)
        assert labels[name].dtype == np.uint8 and len(np.unique(labels[name])) > 1
        assert np.array_equal(labels[name], read(expected / f"{name}_seg.nii.gz"))
        np.testing.assert_allclose(nib.load(answer).affine, nib.load(scans / f"{name}.nii.gz").affine, atol=1e-3)
    return labels


def test_label_equals_that_of_the_command_line(server: Server, scans: Path, tmp_path: Path):
    labels = same_as_command_line(server, tmp_path)
    series = command_line(server, scans / "series", tmp_path / "series") / "series_seg.nii.gz"
    converted = nib.Nifti1Image(labels["from_dicom"], nib.load(tmp_path / "from_dicom.nii.gz").affine)
    one, other = nib.as_closest_canonical(converted), nib.as_closest_canonical(nib.load(series))
    assert np.array_equal(one.dataobj, other.dataobj)


def test_batch_inference_writes_every_label(server: Server):
    request = {"device": "cpu", "multi_gpu": False, "max_workers": 1}
    answer = server.post(f"/batch/infer/{NAME}", request, images="unlabeled", run_sync="true")
    assert answer.status == 200 and set(answer.json) == {*LABELLED, *OTHERS}
    written = server.studies / "labels" / "original"
    assert sorted(path.name for path in written.iterdir()) == sorted(f"{n}.nii.gz" for n in (*LABELLED, *OTHERS))


# ---- refused, with the reason in the response and in the log


def refused(server: Server, words: str, path: str, files: dict[str, Path] | None = None, **query: str) -> int:
    size = server.log.stat().st_size
    answer = server.form("POST", path, files, **query)
    assert re.search(words, answer.json["detail"]) and "\n" not in answer.json["detail"], answer.body
    assert f"error: POST {path}: {answer.json['detail']}" in log_since(server, size)
    return answer.status


def test_bad_input_is_refused(server: Server, tmp_path: Path):
    path, scan = f"/infer/{NAME}", server.studies / "phantom_001.nii.gz"
    assert refused(server, "no image 'absent'", path, image="absent") == 404
    assert refused(server, "no model 'absent'", "/infer/absent", image="phantom_001") == 400
    short = tmp_path / "short.nii.gz"
    short.write_bytes(scan.read_bytes()[:5000])
    assert refused(server, "is cut short", path, {"file": short}) == 400
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 5, 2), np.int16), np.eye(4)), tmp_path / "4d.nii.gz")
    assert refused(server, r"one 3-D volume, got shape \[9, 9, 5, 2\]", path, {"file": tmp_path / "4d.nii.gz"}) == 400


@pytest.mark.parametrize(
    ("spoil", "words", "status"),
    [
        (lambda state: {key: value for key, value in state.items() if ".experts." in key}, "keys missing", 400),
        (lambda state: {"state_dict": state}, r"1 keys not expected \(state_dict\)", 400),
        (lambda state: state | {"pixel_mean": torch.zeros(4, 1, 1)}, r"pixel_mean is \[4, 1, 1\], expected", 400),
        (None, "'.*model.pt' is damaged", 500),
    ],
)
def test_wrong_weights_are_not_served(server: Server, spoil: Any, words: str, status: int):
    model = server.served / "models" / "model.pt"
    whole = model.read_bytes()
    if spoil is None:
        model.write_bytes(whole[: len(whole) // 2])
    else:
        torch.save(spoil(torch.load(model, weights_only=True)), model)
    try:
        assert refused(server, words, f"/infer/{NAME}", image="phantom_004") == status
    finally:
        model.write_bytes(whole)


def test_server_still_works(server: Server, tmp_path: Path):
    same_as_command_line(server, tmp_path)


# ---- train


def upload(server: Server, name: str, label: Path) -> None:
    answer = server.form("PUT", "/datastore/label", {"label": label}, image=name, tag="final")
    assert answer.status == 200, answer.body


def test_training_without_labels_is_refused(server: Server):
    model = (server.served / "models" / "model.pt").read_bytes()
    for address in (f"/train/{NAME}", "/train/"):
        answer = server.post(address, {} if address == "/train/" else {"max_epochs": 1})
        assert answer.status == 409 and "there are 0: label more scans" in answer.json["detail"]
    assert server.post("/train/absent", {}).status == server.post("/batch/infer/absent", {}).status == 404
    assert server.get("/train/").status == 404  # none was started
    assert (server.served / "models" / "model.pt").read_bytes() == model


def test_label_with_unknown_classes_is_refused(server: Server, scans: Path, tmp_path: Path):
    for name in LABELLED:
        upload(server, name, scans / "labelsTr" / f"{name}.nii.gz")
    image = nib.load(scans / "labelsTr" / "phantom_001.nii.gz")
    nib.save(nib.Nifti1Image(read(scans / "labelsTr" / "phantom_001.nii.gz") * 3, image.affine), tmp_path / "l.nii.gz")
    upload(server, "phantom_001", tmp_path / "l.nii.gz")
    size = server.log.stat().st_size
    task = server.train(max_epochs=1, val_split=0.34)
    assert task["status"] == "ERROR" and task["details"][-1].startswith("error: label '")
    assert "expected integers from 0 to 5" in task["details"][-1]
    assert task["details"][-1] in log_since(server, size) + (server.app / "logs" / "app.log").read_text()
    upload(server, "phantom_001", scans / "labelsTr" / "phantom_001.nii.gz")


def test_trained_model_is_served(server: Server, tmp_path: Path):
    """Training continues with the served model: it keeps the settings and needs no other weight file."""
    before = server.infer("phantom_004", tmp_path / "before.nii.gz")
    models = server.served / "models"
    old, settings = torch.load(models / "model.pt", weights_only=True), read_model_settings(models / "model.pt")
    offered = server.get("/info/").json["trainers"][NAME]["config"]  # 3D Slicer sends these back
    chosen = {key: value[0] if isinstance(value, list) else value for key, value in offered.items()}
    task = server.train(**chosen | {"max_epochs": 2, "val_split": 0.34})
    assert task["status"] == "DONE", task["details"]
    assert sorted(path.name for path in models.iterdir()) == ["model.json", "model.pt"]
    assert read_model_settings(models / "model.pt") == settings
    new = torch.load(models / "model.pt", weights_only=True)
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert changed and all(re.search(r"hl_attn|experts|^mask_decoder|no_mask_embed", key) for key in changed)
    labels = same_as_command_line(server, tmp_path)
    assert (labels["phantom_004"] != read(before)).any()


def test_restart_after_a_kill(server: Server, tmp_path: Path):
    """After a kill during training the server restarts with the model from before, and with complete files."""
    model = (server.served / "models" / "model.pt").read_bytes()
    answer = server.post(f"/train/{NAME}", {"device": "cpu", "max_epochs": 50, "val_split": 0.34})
    assert answer.status == 200
    server.wait_for("epoch 1/50")
    server.stop(signal.SIGKILL)
    server.start()
    assert (server.served / "models" / "model.pt").read_bytes() == model
    assert server.get("/info/").json["datastore"]["label_tags"]["final"] == 3
    same_as_command_line(server, tmp_path)
    assert server.stop() == 0


def test_two_trained_models_stop_the_start(server: Server):
    """Neither model is lost."""
    write_model(
        server.model, seed=1, decoder=read_model_settings(server.served / "models" / "model.pt").network.decoder
    )
    with pytest.raises(AssertionError, match="was trained since it was copied there"):
        server.start()
