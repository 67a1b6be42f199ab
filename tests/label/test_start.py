"""The script that starts MONAI Label, without the start itself."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from samora_monai.errors import MissingFileError
from samora_monai.synthetic.phantoms import CLASS_NAMES, write_phantoms
from tests.label.models import write_model
from tests.label.server import ROOT
from tests.tiny import refused


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`label/start.py`, with a folder in place of MONAI Label's app."""
    spec = importlib.util.spec_from_file_location("label_start", ROOT / "label" / "start.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "main.py").touch()
    monkeypatch.setattr(module, "SAMPLE_APP", tmp_path / "sample")
    return module


def test_copied_bundle_names_the_classes_of_the_model(start: ModuleType, tmp_path: Path):
    model = write_model(tmp_path / "trained")
    (tmp_path / "trained" / "models" / "x.pt").touch()  # MONAI Label would serve the shorter name
    placed = start.place(tmp_path / "trained", tmp_path / "app")
    assert placed == tmp_path / "app" / "model" / "samora_segmentation" and (tmp_path / "app" / "main.py").is_file()
    assert sorted(path.name for path in (placed / "models").iterdir()) == ["model.json", "model.pt"]
    assert (placed / "models" / "model.pt").read_bytes() == model.read_bytes()
    data = json.loads((placed / "configs" / "metadata.json").read_text())["network_data_format"]
    assert data["outputs"]["pred"]["channel_def"] == {str(value): name for value, name in enumerate(CLASS_NAMES)}
    assert (data["outputs"]["pred"]["num_channels"], data["inputs"]["image"]["spatial_shape"]) == (6, [64, 64, "*"])


def test_no_trained_model_is_lost(start: ModuleType, tmp_path: Path):
    given, app = tmp_path / "trained", tmp_path / "app"
    first = write_model(given).read_bytes()
    placed = start.place(given, app)
    served = placed / "models" / "model.pt"

    second = write_model(given, seed=1).read_bytes()  # a new model outside; the server has not trained
    start.place(given, app)
    assert first != second == served.read_bytes()

    trained = write_model(placed, seed=2).read_bytes()
    for bundle in (given, placed, given):
        start.place(bundle, app)
        assert served.read_bytes() == trained

    write_model(given, seed=3)
    with refused("was trained since it was copied there", f"MODEL={placed}", "APP=FOLDER"):
        start.place(given, app)
    assert served.read_bytes() == trained


def test_missing_and_damaged_models_are_refused(start: ModuleType, tmp_path: Path):
    with refused("no trained model", "'make demo'", "MODEL=FOLDER", error=MissingFileError):
        start.place(tmp_path / "absent", tmp_path / "app")
    model = write_model(tmp_path / "trained")
    state = torch.load(model, weights_only=True)
    torch.save({key: value for key, value in state.items() if ".experts." in key}, model)
    with refused("'model.pt' does not fit", "keys missing"):
        start.place(tmp_path / "trained", tmp_path / "app")
    model.write_bytes(b"PK")
    with refused("model.pt' is damaged"):
        start.place(tmp_path / "trained", tmp_path / "app")
    assert not (tmp_path / "app").exists()
    with refused("no folder of scans", "STUDIES=FOLDER", error=MissingFileError):
        start.find_studies(str(tmp_path / "absent"))


def test_studies_of_the_demo_are_copied_once(start: ModuleType, tmp_path: Path):
    data = tmp_path / "data"
    write_phantoms(data, num_training=2, num_validation=2, shape=(32, 32, 4))
    studies = start.demo_studies(data, tmp_path / "studies")
    assert sorted(path.name for path in studies.glob("*.*")) == [f"phantom_00{i}.nii.gz" for i in (1, 2, 3, 4)]
    assert sorted(path.name for path in (studies / "labels" / "final").iterdir()) == [
        "phantom_001.nii.gz",
        "phantom_002.nii.gz",
    ]
    (studies / "phantom_001.nii.gz").unlink()
    shutil.rmtree(data)
    assert len(list(start.demo_studies(data, studies).glob("*.nii.gz"))) == 3  # not changed
    with refused("no scans in", "'make demo'", error=MissingFileError):
        start.demo_studies(data, tmp_path / "other")
