"""The calls that MONAI Label makes on the bundle, without its server; its label is that of the command line.

`tests/label` has the script that starts a server, and the checks with one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import LoadImaged, SaveImaged

from samora_monai.checkpoints import read_model_settings
from samora_monai.data import DataSet, resolve_class_names
from samora_monai.errors import MissingFileError
from samora_monai.workflow.cases import given_cases, resolve_cases
from tests.bundles.command_line import Bundle
from tests.bundles.conftest import Trained
from tests.label.models import HEADER, SAMORA, write_model
from tests.tiny import refused, untouched

# ---- infer


@pytest.mark.parametrize("image_only", [True, False])
def test_label_is_that_of_the_command_line(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_only: bool
):
    """One config file, `device` a text, transforms one by one on a dictionary with keys of its own."""
    scan = trained.data / "imagesVal" / "phantom_003.nii.gz"
    finished = trained.bundle("inference", dataset_dir=scan, output_dir=tmp_path)
    assert finished.code == 0, finished
    monkeypatch.chdir(tmp_path)

    parser = ConfigParser(ConfigParser.load_config_file(trained.bundle.configs("inference.json")[0]))
    parser["bundle_root"] = str(trained.bundle.root)
    parser["device"] = "cpu"
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(trained.bundle.model, weights_only=True))
    network.eval()
    preprocessing = parser.get_parsed_content("preprocessing").transforms
    inferer = parser.get_parsed_content("inferer")
    postprocessing = parser.get_parsed_content("postprocessing").transforms
    assert [type(t).__name__ for t in postprocessing if isinstance(t, SaveImaged)] == ["SaveLabeld"]

    data = {"image": str(scan), "image_path": str(scan), "model": "samora_segmentation", "device": "cpu"}
    for transform in preprocessing:
        if isinstance(transform, LoadImaged):
            transform._loader.image_only = image_only
        data = transform(data)
        assert isinstance(data, dict) and data["image_path"] == str(scan)
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network)[0]
    for transform in postprocessing:
        if not isinstance(transform, SaveImaged):
            data = transform(data)

    pred, label = data["pred"], nib.load(tmp_path / "phantom_003_seg.nii.gz")
    assert isinstance(pred, MetaTensor) and pred.shape == (1, *label.shape)
    assert len(np.unique(label.dataobj)) > 3
    assert np.array_equal(pred[0].numpy(), label.dataobj)
    np.testing.assert_allclose(pred.affine, label.affine, atol=1e-5)


# ---- weights, which MONAI Label loads with strict=False


def network_def(bundle: Bundle) -> torch.nn.Module:
    parser = ConfigParser(ConfigParser.load_config_file(bundle.configs("inference.json")[0]))
    parser["bundle_root"] = str(bundle.root)
    return parser.get_parsed_content("network_def")


@pytest.mark.parametrize("decoder", ["sam", "hierarchical"])
def test_model_holds_what_the_network_has(bundle: Bundle, decoder: str):
    """SAMora and H-SAMora: the network of the settings beside the file, with all experts inside the file."""
    state = torch.load(write_model(bundle.root, decoder=decoder), weights_only=True)
    net = network_def(bundle)
    assert list(state) == list(net.state_dict())
    net.load_state_dict(state, strict=False)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_other_weights_are_refused(bundle: Bundle):
    state = torch.load(write_model(bundle.root), weights_only=True)
    net = network_def(bundle)
    key = "image_encoder.blocks.0.norm1.weight"
    for spoiled, words in (
        ({name: value for name, value in state.items() if ".experts." in name}, "280 keys missing (pixel_mean, "),
        ({name: value for name, value in state.items() if name != key}, f"1 keys missing ({key})"),
        (state | {"ema": state[key]}, "1 keys not expected (ema)"),
        ({"state_dict": state}, "352 keys missing"),
        (state | {key: state[key][:9]}, f"{key} is [9], expected [128]"),
        (state | {key: 1.0}, f"{key} is float, expected [128]"),
    ):
        with untouched(net), refused(words, "ViT 128 wide", "6 classes", "model.json beside it"):
            net.load_state_dict(spoiled, strict=False)


# ---- train


def overrides(bundle: Bundle, data: Path) -> dict[str, Any]:
    """What MONAI Label hands to `monai.bundle.run`; the other settings are those of train.yaml."""
    train, validation = (
        [{part: str(data / f"{part}s{end}" / path.name) for part in ("image", "label")} for path in paths]
        for end, paths in ((end, sorted((data / f"images{end}").iterdir())) for end in ("Tr", "Val"))
    )
    handlers = ConfigParser.load_config_file(bundle.configs("train.yaml")[0])["train"]["handlers"]
    model = {"_target_": "CheckpointLoader", "load_path": str(bundle.model), "load_dict": {"model": "$@network"}}
    return {
        "bundle_root": str(bundle.root),
        "device": "cpu",
        "train#trainer#max_epochs": 1,
        "train#dataset#data": train,
        "validate#dataset#data": validation,
        "train#handlers": [model | {"strict": False}, *handlers],
    }


@pytest.mark.parametrize(
    ("settings", "run_id"),
    [
        pytest.param({}, "", id="SAMora"),
        pytest.param({"decoder": "hierarchical"}, "run", id="H-SAMora"),
        pytest.param({"encoder": "sam2_mini", "context": 1}, "", id="SAMora on SAM 2, neighbouring slices"),
    ],
)
def test_training_goes_on_with_the_model(
    bundle: Bundle,
    data: Path,
    settings: dict[str, Any],
    run_id: str,
    in_process: Callable[..., ConfigWorkflow],
    caplog: Any,
):
    """No data set, SAM or expert file is named: all settings and weights are the model's.

    The empty `run_id`, which 3D Slicer sends, is the whole config to MONAI.
    """
    caplog.set_level("INFO", "samora_monai")
    before = torch.load(write_model(bundle.root, **settings), weights_only=True)
    given = overrides(bundle, data)
    given.pop("bundle_root")
    workflow = in_process(bundle, "training", run_id=run_id, **given)
    workflow.initialize()
    started = workflow.parser.get_parsed_content("network_def").state_dict()
    assert all(torch.equal(value, before[key]) for key, value in started.items())
    workflow.run()
    workflow.finalize()
    assert "loaded 'model.pt': copied" in caplog.text
    after, written = torch.load(bundle.model, weights_only=True), read_model_settings(bundle.model).as_dict()
    assert written.items() >= (SAMORA | HEADER | settings).items()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert all(any(part in key for key in changed) for part in (".experts.", ".hl_attn.", "mask_decoder."))
    assert not any(".qkv." in key for key in changed)


def test_a_training_without_a_model_names_its_classes(data: Path, tmp_path: Path):
    scans = [{"image": str(path), "label": str(path)} for path in sorted((data / "imagesTr").iterdir())]
    nowhere = DataSet(tmp_path / "no data set")
    cases = resolve_cases(nowhere, scans[:1], scans[1:], tmp_path / "model.pt")
    assert cases.model_file is None and cases.training == (scans[0],) and cases.validation == (scans[1],)
    with refused("the lists of scans that were given", "--class_names"):
        resolve_class_names(cases)
    (tmp_path / "model.pt").touch()
    with refused("no model settings", error=MissingFileError):
        resolve_cases(nowhere, scans[:1], scans[1:], tmp_path / "model.pt")


def test_cases_are_those_of_the_data_set_once_it_is_read(data: Path, tmp_path: Path):
    """Nothing is continued then, whatever model lies in the bundle."""
    data_set = DataSet(data)
    training, validation = data_set.cases.training, data_set.cases.validation[:1]
    cases = resolve_cases(data_set, training, validation, tmp_path / "model.pt")
    assert (cases.training, cases.validation, cases.model_file) == (training, data_set.cases.validation, None)
    assert cases.class_names == data_set.cases.class_names and cases.source == str(data / "dataset.json")


def test_lists_that_cannot_be_trained_on(data: Path):
    scans = [{"image": str(path), "label": str(path)} for path in sorted((data / "imagesTr").iterdir())]
    with refused("have none for training", "label more scans"):
        given_cases([], scans)
    with refused("have none for validation", "val_split"):
        given_cases(scans, [])
    with refused("is in training and in validation"):
        given_cases(scans, scans[1:])
    with refused("expected paths of an image and a label"):
        given_cases([{"image": scans[0]["image"]}], scans[1:])
    with refused("does not exist", error=MissingFileError):
        given_cases([scans[0] | {"label": "absent.nii.gz"}], scans[1:])
