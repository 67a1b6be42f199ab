"""Equal provenance means the same model, settings and scan; the scans that a process segments."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.data import SaveLabeld
from samora_monai.data.label_files import PROVENANCE
from samora_monai.inference import LabelProvenance, folder, scans_to_segment

SETTINGS = ModelSettings.from_dict({"encoder": "tiny", "image_size": 64})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.pt").write_bytes(b"weights")
    return tmp_path / "model.pt"


def scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"voxels")
    os.utime(path, (1e9, 1e9))
    return path


def test_everything_that_changes_a_label_changes_its_provenance(model: Path, tmp_path: Path, monkeypatch):
    volume, header = scan(tmp_path / "v.nii.gz"), scan(tmp_path / "h.mhd")
    raw, series = scan(tmp_path / "h.raw"), scan(tmp_path / "s" / "1.dcm").parent
    seen = set()

    def is_new(path: Path, settings: ModelSettings = SETTINGS, amp: bool | str = False, tta: bool = False) -> bool:
        text = LabelProvenance(model, settings, amp, tta).of(path)
        assert (
            text == LabelProvenance(str(model), settings.changed(), str(amp).lower(), str(tta).lower()).of(str(path))
            and len(text) <= 79
        )
        new = text not in seen
        seen.add(text)
        return new

    assert is_new(volume) and is_new(header) and is_new(series)
    assert not is_new(volume) and not is_new(header) and not is_new(series)
    assert (
        is_new(volume, tta=True) and is_new(volume, amp=True) and is_new(volume, SETTINGS.changed(window=(-125, 250)))
    )
    os.utime(volume, (1e9, 1e9 + 1))
    raw.write_bytes(b"others")
    scan(series / "2.dcm")
    assert is_new(volume) and is_new(header) and is_new(series)
    model.write_bytes(b"weight5")
    assert is_new(volume)
    monkeypatch.setattr(folder, "__version__", "0")
    assert is_new(volume)


def test_scans_of_a_process(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Each scan is in one share; only `resume` skips finished ones; files of other processes are not removed."""
    caplog.set_level("INFO", "samora_monai")
    scans = [{"image": str(scan(tmp_path / "scans" / f"{name}.nii.gz"))} for name in "abcde"]
    provenance, saver = (
        LabelProvenance(model, SETTINGS, False),
        SaveLabeld("pred", tmp_path / "labels", tmp_path / "scans"),
    )
    shares = [scans_to_segment(scans, saver, provenance, (rank, 2), False) for rank in range(2)]
    assert [[Path(item["image"]).name[0] for item in share] for share in shares] == [["a", "c", "e"], ["b", "d"]]
    assert caplog.messages == [
        "rank 0 of 2: 3 scans, 0 finished before",
        "rank 1 of 2: 2 scans, 0 finished before",
    ]
    caplog.clear()
    for item in shares[0][:2]:
        label = MetaTensor(torch.ones(1, 4, 5, 3), meta={"filename_or_obj": item["image"]})
        saver({"pred": label, PROVENANCE: item[PROVENANCE]})
    for name in (".0a1b2c3d4e5f_e_seg.nii.gz", ".0a1b2c3d4e5f_d_seg.nii.gz", ".0a_notes.txt"):
        (tmp_path / "labels" / name).touch()
    assert scans_to_segment(scans, saver, provenance, (0, 2), "true") == shares[0][2:]
    assert scans_to_segment(scans, saver, provenance, (0, 2), False) == shares[0]
    other = LabelProvenance(model, SETTINGS, True)
    assert scans_to_segment(scans, saver, other, (0, 1), True) == [
        {"image": item["image"], PROVENANCE: other.of(item["image"])} for item in scans
    ]
    assert caplog.messages == [
        "rank 0 of 2: 3 scans, 2 finished before",
        "rank 0 of 2: 3 scans, 2 finished before; they are made again, --resume true would keep them",
    ]
    left = sorted(path.name for path in (tmp_path / "labels").iterdir())
    assert left == [".0a_notes.txt", "a_seg.nii.gz", "c_seg.nii.gz"]  # the last call had all five scans
    assert scans_to_segment(scans[:1], saver, provenance, (1, 2), True) == []
