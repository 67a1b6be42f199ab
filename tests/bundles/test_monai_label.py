"""The calls that MONAI Label makes on the bundle, without its server; its label is that of the command line."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import LoadImaged, SaveImaged

from tests.bundles.conftest import Trained


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
