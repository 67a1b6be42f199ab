"""Next Sample without MONAI Label: background, store and choice on a datastore of the same methods."""

from __future__ import annotations

import logging
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from samora_monai.checkpoints.files import write_checkpoint
from samora_monai.pipeline.at_hand import Base
from tests.label.models import write_model
from tests.label.modules import label_module
from tests.tiny import tiny

store_module = label_module("scoring_store")
scoring = label_module("scoring")
strategies = label_module("strategies")


class Datastore:
    """The methods of MONAI Label's datastore that the strategies call."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.labelled = folder, []
        self.information: dict[str, dict[str, Any]] = {}
        rng = np.random.default_rng(0)
        for i in range(count):
            name = f"patient{i // 2}_scan{i}"
            self.information[name] = {}
            volume = (200 * rng.random((16, 16, 9))).astype(np.int16) + 20 * (i // 2)
            nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / f"{name}.nii.gz")

    def get_labeled_images(self) -> list[str]:
        return self.labelled

    def get_unlabeled_images(self) -> list[str]:
        return [name for name in self.information if name not in self.labelled]

    def get_image_info(self, image: str) -> dict[str, Any]:
        return self.information[image]

    def update_image_info(self, image: str, info: dict[str, Any]) -> None:
        self.information[image].update(info)

    def get_image_uri(self, image: str) -> str:
        return str(self.folder / f"{image}.nii.gz")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Six scans of three patients, and a served model."""
    monkeypatch.setattr(scoring, "build_segmenter", _small)
    write_checkpoint(tiny(64, num_classes=2, experts=()).state_dict(), tmp_path / "base.pt")
    model = write_model(tmp_path, encoder=_SIZES, experts=["task"], fusion=None)
    (tmp_path / "studies").mkdir()
    datastore = Datastore(tmp_path / "studies", 6)
    base = Base("tiny", str(tmp_path / "base.pt"), "for the test")
    store = store_module.Store(tmp_path / "next_sample", "tiny")
    background = scoring.Background(store, base, model, datastore.get_image_uri)
    return SimpleNamespace(datastore=datastore, background=background, store=store, model=model)


_SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "window_size": 3, "out_chans": 32}
_SIZES["global_attn_indexes"] = [1]


def _small(encoder: Any, *sizes: int, **options: Any):
    """The network of the features, small; that of the model as it is."""
    from samora_monai.networks import build_segmenter

    return build_segmenter(encoder) if not sizes else tiny(64, **options)


def hand_out(server: SimpleNamespace, strategy: str, at: int = 0) -> str:
    """Next Sample as MONAI Label does it, which notes when it handed out which image."""
    image = strategies.Chooser(server.background, shuffle=min)(strategy, server.datastore)
    server.datastore.information[image].setdefault("strategy", {})[strategy] = {"ts": at}
    return image


def test_the_background_computes_what_is_missing_and_no_more(server: SimpleNamespace):
    images = server.datastore.get_unlabeled_images()
    background = server.background
    assert background.lacks(images)
    assert background.features(images[:4]) == {"computed": 4, "failed": 0}
    assert background.features(images) == {"computed": 2, "failed": 0}
    assert background.uncertainty(images) == {"computed": 6, "failed": 0}
    assert not background.lacks(images)
    assert background.features(images) == background.uncertainty(images) == {"computed": 0, "failed": 0}
    write_model(server.model.parents[1], seed=1, encoder=_SIZES, experts=["task"], fusion=None)  # trained meanwhile
    assert background.lacks(images) and server.store.scores(background.model_key) == {}


def test_strategies_hand_out_every_scan_and_no_patient_twice_in_a_row(server: SimpleNamespace):
    images = server.datastore.get_unlabeled_images()
    server.background.features(images)
    server.background.uncertainty(images)
    for strategy in ("representative", "mixed", "uncertain"):
        server.datastore.information = {name: {} for name in images}
        handed = [hand_out(server, strategy, at=100 + i) for i in range(6)]
        assert sorted(handed) == images
        patients = [name.split("_")[0] for name in handed]
        assert all(a != b for a, b in pairwise(patients[:5]))
    scores = server.store.scores(server.background.model_key)
    assert handed[0] == max(scores, key=lambda name: scores[name])
    note = server.datastore.information[handed[0]]["samora"]
    assert note == {"strategy": "uncertain", "uncertainty": scores[handed[0]]}


def test_next_sample_works_before_the_background_and_says_so(server: SimpleNamespace, caplog):
    for strategy in strategies.DESCRIPTIONS:
        with caplog.at_level(logging.WARNING):
            assert hand_out(server, strategy) in server.datastore.information
        assert f"'{strategy}' chose" in caplog.text and "without a score" in caplog.text
        caplog.clear()


def test_a_failing_score_does_not_break_next_sample(server: SimpleNamespace, caplog, monkeypatch):
    def fail(images):
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(server.store, "features", fail)
    assert hand_out(server, "mixed") == "patient0_scan0"
    assert "RuntimeError: the disk is gone" in caplog.text


def test_a_damaged_scan_is_left_out_with_a_line_and_not_read_again(server: SimpleNamespace, caplog):
    images = server.datastore.get_unlabeled_images()
    damaged = Path(server.datastore.get_image_uri(images[0]))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:200])
    assert server.background.features(images) == {"computed": 5, "failed": 1}
    assert f"image '{images[0]}' is left out: cannot read" in caplog.text
    server.background.uncertainty(images)
    assert not server.background.lacks(images)
    damaged.write_bytes(whole)
    assert server.background.features(images) == {"computed": 1, "failed": 0}


def test_damaged_files_of_the_store_are_computed_again(server: SimpleNamespace):
    images = server.datastore.get_unlabeled_images()[:2]
    server.background.features(images)
    next((server.store.folder / "features").iterdir()).write_bytes(b"no archive")
    (server.store.folder / "scores.json").write_text("{")
    assert len(server.store.features(images)[0]) == 1
    assert server.background.features(images)["computed"] == 1
    assert server.store.scores(server.background.model_key) == {}
    shutil.rmtree(server.store.folder)
    assert store_module.Store(server.store.folder, "tiny").features(images) == ({}, {})


def test_all_labelled_gives_nothing(server: SimpleNamespace):
    server.datastore.labelled = list(server.datastore.information)
    assert strategies.Chooser(server.background)("mixed", server.datastore) is None


def test_patients_are_those_of_dicom_or_of_the_names():
    information = {"1.2.840.1": {"PatientID": "7"}, "1.2.840.2": {"PatientID": "7"}, "1.2.840.3": {"PatientID": "UNK"}}
    information |= {"p01_a": {}, "p01_b": {}, "p02_a": {}}
    patients = strategies.patients_by_name(information)
    assert patients["1.2.840.1"] == patients["1.2.840.2"] != patients["1.2.840.3"]
    assert patients["p01_a"] == patients["p01_b"] != patients["p02_a"]
