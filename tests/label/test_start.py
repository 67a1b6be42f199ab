"""The script that starts MONAI Label, without the start itself."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from samora_monai.checkpoints import ModelSettings
from samora_monai.errors import MissingFileError
from samora_monai.synthetic.phantoms import CLASS_NAMES, write_phantoms
from tests.label.models import HEADER, SAMORA, write_model
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


def test_mr_models_list_mr_series(start: ModuleType, tmp_path: Path):
    """And lists are a minute old at most."""
    for modality in ("CT", "MR"):
        settings = ModelSettings.from_dict(HEADER | SAMORA | {"modality": modality})
        variables = start.environment(tmp_path, settings)
        assert json.loads(variables["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"]) == {"Modality": modality}
        assert int(variables["MONAI_LABEL_DICOMWEB_CACHE_EXPIRY"]) <= 60


def test_a_server_for_others_asks_who_they_are(start: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MONAI_LABEL_AUTH_ENABLE", raising=False)
    for host in ("127.0.0.1", "localhost", "::1"):
        start.check_host(host)
    for host in ("0.0.0.0", "::", "192.168.0.7", "", "127.0.0.1.example"):
        with refused("everyone in the network", "MONAI_LABEL_AUTH_ENABLE=true", "ssh -L"):
            start.check_host(host)
    monkeypatch.setenv("MONAI_LABEL_AUTH_ENABLE", "True")
    start.check_host("0.0.0.0")


def test_a_missing_dicom_tool_stops_the_start(start: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """MONAI Label would download it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused("no 'itkimage2segimage'", "pip install dcmqi", error=MissingFileError):
        start.check_dicom_tools(tmp_path)
    (tmp_path / "itkimage2segimage").touch(0o755)
    start.check_dicom_tools(tmp_path)


def test_only_unfinished_files_of_killed_servers_are_removed(start: ModuleType, tmp_path: Path):
    app, studies = tmp_path / "app", tmp_path / "studies"
    left = [
        studies / ".ab.unfinished",
        studies / "labels" / "final" / ".cd.unfinished",
        app / "tmp" / "4194305" / "x.nii",
    ]
    kept = [studies / "a.nii.gz", studies / "labels" / "final" / "a.nii.gz", app / "tmp" / "1" / "y.nii"]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (app / "sessions" / "killed").mkdir(parents=True)
    (app / "sessions" / "whole").mkdir()
    (app / "sessions" / "whole" / "meta.info").write_text("{}")
    own = start.remove_leftovers(app, str(studies))
    assert [folder.name for folder in (app / "sessions").iterdir()] == ["whole"]
    assert own.is_dir() and own.stat().st_mode & 0o077 == 0
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept)
