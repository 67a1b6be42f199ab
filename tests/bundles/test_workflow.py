"""Train, evaluate, infer: the bundle's main job through its command line, on scans that are neither RAS nor upright."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from samora_monai.checkpoints.model_settings import FORMAT_VERSION, ModelSettings, read_model_settings
from samora_monai.networks import build_segmenter
from samora_monai.report.provenance import file_sha256
from samora_monai.synthetic.phantoms import CLASS_NAMES
from tests.bundles.command_line import FAST, ROOT, Bundle, Finished
from tests.bundles.conftest import Trained

VALIDATION = ("phantom_003", "phantom_004")


def case_lines(finished: Finished) -> list[str]:
    """What inference printed, without MONAI's line about its logging; nothing may have gone wrong."""
    assert (finished.code, finished.complaints) == (0, [])
    return [line for line in finished.out.splitlines() if "Setting logging properties" not in line]


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def same_place(one: Path, other: Path) -> None:
    """`one` is a uint8 label map with exactly the shape and the affine of the scan `other`."""
    label, scan = nib.load(one), nib.load(other)
    assert label.get_data_dtype() == np.uint8
    assert label.shape == scan.shape
    np.testing.assert_allclose(label.affine, scan.affine, atol=1e-5)
    np.testing.assert_allclose(label.get_qform(), scan.affine, atol=1e-4)  # stored as a quaternion


def write_dicom(folder: Path, scan: Path) -> None:
    """The scan as a DICOM series, slice by slice along the patient's axis."""
    nifti = nib.as_closest_canonical(nib.load(scan))
    lps = np.diag([-1, -1, 1, 1]) @ nifti.affine  # of an array [X, Y, Z]
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    array = np.asanyarray(nifti.dataobj).astype(np.int16)
    folder.mkdir(parents=True)
    for k in range(array.shape[2]):
        image = itk.image_from_array(np.ascontiguousarray(array[:, :, k : k + 1].transpose(2, 1, 0)))
        image.SetSpacing(spacing.tolist())
        image.SetOrigin((lps @ (0, 0, k, 1))[:3].tolist())
        image.SetDirection(itk.matrix_from_array(direction))
        header = image.GetMetaDataDictionary()
        header["0008|0060"], header["0020|000e"], header["0020|0013"] = "CT", "1.2.3.4", str(k)
        gdcm = itk.GDCMImageIO.New()
        gdcm.KeepOriginalUIDOn()
        itk.ImageFileWriter[type(image)].New(Input=image, FileName=str(folder / f"{k}.dcm"), ImageIO=gdcm).Update()


def dice(pred: np.ndarray, label: np.ndarray, index: int) -> float:
    p, q = pred == index, label == index
    return 2 * int((p & q).sum()) / (int(p.sum()) + int(q.sum())) if q.any() else float("nan")


# ---- training


def test_training_leaves_a_model_and_its_settings(trained: Trained):
    bundle = trained.bundle
    settings = json.loads(bundle.model.with_suffix(".json").read_text())
    defaults = ConfigParser.load_config_file(bundle.configs("train.yaml")[0])
    assert settings.pop("class_names") == list(CLASS_NAMES)
    assert (settings.pop("format_version"), settings.pop("in_channels")) == (FORMAT_VERSION, 1)
    assert settings == {key: (defaults | FAST)[key] for key in settings}
    assert {*settings} == {*ModelSettings().as_dict()} - {"class_names", "in_channels"}
    state = torch.load(bundle.model, weights_only=True)
    expected = build_segmenter("tiny", 64, num_classes=6).state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in expected.items()}
    assert sorted(os.listdir(bundle.root / "models")) == ["model.json", "model.pt"]
    assert torch.load(trained.output_dir / "last.pt", weights_only=True)["trainer"]["iteration"] == 8


def test_training_tells_what_it_does(trained: Trained):
    out = trained.finished.out
    assert trained.finished.complaints == []
    assert "2 training (16 of 16 slices), 2 validation" in out
    assert "0 background, 1 spleen" in out
    assert [line.split("  ")[0] for line in out.splitlines() if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert len(re.findall(r"^validation mean Dice 0\.\d+ \(best", out, re.MULTILINE)) == 2


def test_training_is_shown_in_tensorboard(trained: Trained):
    events = EventAccumulator(str(trained.output_dir)).Reload()
    assert len(events.Scalars("train_loss")) == 8  # 16 slices in fours, twice
    assert [event.step for event in events.Scalars("val_mean_dice")] == [1, 2]
    assert [event.step for event in events.Images("validation/overlay")] == [1, 2]
    png = events.Images("validation/overlay")[0]
    assert png.encoded_image_string[1:4] == b"PNG" and png.width >= 36


# ---- evaluation


@pytest.fixture(scope="module")
def predictions(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inference of the two validation scans."""
    folder = tmp_path_factory.mktemp("predictions")
    finished = trained.bundle("inference", dataset_dir=trained.data / "imagesVal", output_dir=folder)
    lines = case_lines(finished)
    assert [line.split()[0] for line in lines] == ["[1/2]", "[2/2]"]
    for case, line in zip(VALIDATION, lines, strict=True):
        assert f"{case}.nii.gz -> {folder / case}_seg.nii.gz" in line
    assert sorted(os.listdir(folder)) == [f"{case}_seg.nii.gz" for case in VALIDATION]
    return folder


def test_evaluation_measures_what_inference_writes(trained: Trained, predictions: Path, tmp_path: Path):
    """The tables, with nothing but the model given, against a count of voxels in inference's files."""
    finished = trained.bundle("evaluating", dataset_dir=trained.data, output_dir=tmp_path)
    assert (finished.code, finished.complaints) == (0, [])
    assert sorted(os.listdir(tmp_path)) == ["cases.csv", "metrics.csv", "report.html", "summary.csv"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    settings = read_model_settings(trained.bundle.model).as_dict() | {
        "Checkpoint SHA-256": file_sha256(trained.bundle.model)
    }
    for name in ("encoder", "image_size", "modality", "Checkpoint SHA-256"):
        assert f'<tr><th scope="row">{name}</th><td><code>{settings[name]}</code></td></tr>' in page
    assert "python -m monai.bundle run evaluating --config_file" in page and page.count("data:image/png") == 2 * 3
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["name"]) for row in rows] == [(c, n) for c in VALIDATION for n in CLASS_NAMES[1:]]
    measured = {}
    for row in rows:
        pred = read(predictions / f"{row['case']}_seg.nii.gz")
        label = read(trained.data / "labelsVal" / f"{row['case']}.nii.gz")
        measured[row["case"], row["name"]] = dice(pred, label, int(row["class"]))
        assert float(row["dice"]) == pytest.approx(measured[row["case"], row["name"]], abs=1e-6, nan_ok=True)
    assert max(measured.values()) > 0.05  # the comparison is not of zeros
    with open(tmp_path / "cases.csv", newline="") as file:
        cases = list(csv.DictReader(file))
    assert [row["case"] for row in cases] == [*VALIDATION] and all(0 < float(row["entropy"]) <= 1 for row in cases)
    with open(tmp_path / "summary.csv", newline="") as file:
        summary = {row["name"]: row for row in csv.DictReader(file)}
    assert list(summary) == [*CLASS_NAMES[1:], "mean"]
    means = [np.mean([measured[case, name] for case in VALIDATION]) for name in CLASS_NAMES[1:]]
    assert [float(summary[name]["dice"]) for name in CLASS_NAMES[1:]] == pytest.approx(means, abs=1e-6)
    assert float(summary["mean"]["dice"]) == pytest.approx(np.mean(means), abs=1e-6)
    best = re.findall(r"\(best (\S+) at epoch", trained.finished.out)[-1]
    assert float(best) == pytest.approx(np.mean(means), rel=1e-3)  # as printed in training
    assert all(name in finished.out for name in (*VALIDATION, *CLASS_NAMES[1:]))


# ---- inference


def test_labels_lie_on_their_scans(trained: Trained, predictions: Path):
    for case in VALIDATION:
        scan = trained.data / "imagesVal" / f"{case}.nii.gz"
        same_place(predictions / f"{case}_seg.nii.gz", scan)
        assert len(np.unique(read(predictions / f"{case}_seg.nii.gz"))) > 3
    oblique = nib.load(trained.data / "imagesVal" / f"{VALIDATION[0]}.nii.gz")
    assert nib.aff2axcodes(oblique.affine) == tuple("PIR")
    assert (np.abs(oblique.affine[:3, :3]) > 1e-3).sum() == 9


def test_one_file_from_within_the_bundle(trained: Trained, predictions: Path, tmp_path: Path):
    """The README's command in a real interpreter, with relative paths, from a bundle that was moved."""
    bundle = Bundle(tmp_path / "moved", trained.bundle.command_line)
    for file in (trained.bundle.root / "models").iterdir():
        os.link(file, bundle.root / "models" / file.name)
    scan = trained.data / "imagesVal" / "phantom_003.nii.gz"
    words = [
        "run",
        "inference",
        "--config_file",
        "configs/inference.json",
        "--dataset_dir",
        os.path.relpath(scan, bundle.root),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *words],
        cwd=bundle.root,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = case_lines(Finished(done.returncode, done.stdout, done.stderr))
    assert len(lines) == 1 and lines[0].startswith("[1/1]")
    written = bundle.root / "eval" / "phantom_003_seg.nii.gz"
    assert os.listdir(bundle.root / "eval") == [written.name]
    assert np.array_equal(read(written), read(predictions / written.name))


def test_training_and_evaluation_from_within_the_bundle(bundle: Bundle, data: Path):
    """With `dataset_dir` alone, and everything beside it by default; the bundle then holds all results."""
    few = FAST | {"epochs": 1, "val_interval": 5, "device": "cpu"}  # the last epoch is validated
    settings = [word for key, value in few.items() for word in (f"--{key}", value)]
    data.rename(bundle.root / "data")  # the default of dataset_dir
    training = bundle.command_line("run", "training", "--config_file", "configs/train.yaml", *settings, cwd=bundle.root)
    assert (training.code, training.complaints) == (0, [])
    overlay = "['configs/train.yaml','configs/evaluate.yaml']"
    evaluating = bundle.command_line("run", "evaluating", "--config_file", overlay, cwd=bundle.root)
    assert (evaluating.code, evaluating.complaints) == (0, [])
    assert {"metrics.csv", "summary.csv", "report.html", "last.pt"} < set(os.listdir(bundle.root / "eval"))
    assert sorted(os.listdir(bundle.root)) == [
        "LICENSE",
        "configs",
        "data",
        "docs",
        "eval",
        "large_files.yml",
        "models",
    ]


def test_folder_with_nifti_and_dicom(trained: Trained, predictions: Path, tmp_path: Path):
    """Sub-folders are kept, a DICOM series is one case, and its label is that of the same scan as NIfTI."""
    scans, out = tmp_path / "scans", tmp_path / "out"
    scan = trained.data / "imagesVal" / "phantom_003.nii.gz"
    write_dicom(scans / "patient" / "series", scan)
    (scans / "nifti").mkdir()
    os.link(scan, scans / "nifti" / "p.3.nii.gz")
    finished = trained.bundle("inference", dataset_dir=scans, output_dir=out)
    assert [line.split()[0] for line in case_lines(finished)] == ["[1/2]", "[2/2]"]
    expected = predictions / "phantom_003_seg.nii.gz"
    assert np.array_equal(read(out / "nifti" / "p.3_seg.nii.gz"), read(expected))

    label = itk.imread(str(out / "patient" / "series_seg.nii.gz"))
    series = itk.imread([str(scans / "patient" / "series" / f"{k}.dcm") for k in range(label.shape[0])])
    for name in ("GetSpacing", "GetOrigin"):
        np.testing.assert_allclose(getattr(label, name)(), getattr(series, name)(), atol=1e-4)
    np.testing.assert_allclose(label.GetDirection(), series.GetDirection(), atol=1e-5)
    from_dicom = nib.as_closest_canonical(nib.load(out / "patient" / "series_seg.nii.gz"))
    from_nifti = nib.as_closest_canonical(nib.load(expected))
    np.testing.assert_allclose(from_dicom.affine, from_nifti.affine, atol=1e-3)
    assert np.array_equal(from_dicom.dataobj, from_nifti.dataobj)


def test_dicom_folder(trained: Trained, tmp_path: Path):
    write_dicom(tmp_path / "series", trained.data / "imagesVal" / "phantom_004.nii.gz")
    lines = case_lines(trained.bundle("inference", dataset_dir=tmp_path / "series", output_dir=tmp_path / "out"))
    assert len(lines) == 1 and f"series -> {tmp_path}/out/series_seg.nii.gz" in lines[0]
