"""What a plan decides, from scans in odd layouts, and the data that it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samora_monai.data import find_cases, find_unlabeled
from samora_monai.pipeline.plan import EXPERTS, TEACHERS, TRAININGS
from samora_monai.pipeline.planning import read_plan, stage_settings
from tests.data.dicom import write_dicom
from tests.pipeline.scans import LAS, SHAPE, ct, labels, mr, planned, write
from tests.tiny import refused

SAGITTAL = np.array([[0, 0, 4.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # ASR, 4 mm between slices


def labelled(folder: Path, count: int = 1, scan=ct, **options) -> Path:
    """A folder with labelled scans."""
    for i in range(count):
        scan(folder / f"s{i}.nii.gz", seed=i, **options), labels(folder / f"s{i}_seg.nii.gz", 1, 2, **options)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_ct_in_las(data: Path, run: Path, capsys: pytest.CaptureFixture[str]):
    labelled(data, 5, affine=np.diag([-0.7, 0.7, 3, 1]))
    ct(data / "more/u.nii.gz", seed=9)
    plan = planned(data, run)
    assert plan.data == {
        "modality": "CT",
        "window": [-125, 275],
        "percentiles": [0.5, 99.5],
        "slice_axis": 2,
        "class_names": ["background", "class_1", "class_2"],
    }
    assert "lowest value -1000" in plan.reasons["data.modality"]
    assert "axial" in plan.reasons["data.slice_axis"] and "0.7 x 0.7 x 3 mm" in plan.reasons["data.slice_axis"]
    assert plan.network["image_size"] == 192  # the smallest one that suits the stand-in
    cases = find_cases(run / "data")
    assert [len(part) for part in (cases.training, cases.validation, cases.unlabeled)] == [4, 1, 1]
    assert (cases.modality, cases.class_names) == ("CT", ("background", "class_1", "class_2"))
    found = find_unlabeled(run / "data")
    assert len(found.training) == 5 and [case["image"] for case in found.validation] == [cases.validation[0]["image"]]
    assert "note: 1 of 5 labelled scans are held out for validation, chosen by the seed 0" in capsys.readouterr().out
    assert read_plan(run / "plan.yaml") == plan == planned(data, run)
    others = {json.dumps(find_cases(run / "data").validation) for seed in range(6) if planned(data, run, seed=seed)}
    assert len(others) > 1


def test_every_value_of_the_file_has_its_reason(data: Path, run: Path):
    plan = planned(labelled(data), run)
    for section in ("data", "network", "run"):
        assert {f"{section}.{key}" for key in getattr(plan, section)} <= plan.reasons.keys()
    missing = {f"stages.{name}.{key}" for name, stage in plan.stages.items() for key in stage} - plan.reasons.keys()
    assert missing == set()


def test_sagittal_mr_with_thick_slices(data: Path, run: Path):
    labelled(data, 2, scan=mr, affine=SAGITTAL)
    mr(data / "iso.nii.gz", seed=9)
    plan = planned(data, run)
    assert (plan.data["modality"], plan.data["slice_axis"]) == ("MR", 0)
    assert "no Hounsfield units" in plan.reasons["data.modality"]
    assert "sagittal" in plan.reasons["data.slice_axis"] and "2 of 3 scans" in plan.reasons["data.slice_axis"]


def test_dicom_pictures_and_arrays_among_the_unlabelled(data: Path, run: Path):
    labelled(data)
    write_dicom(data / "series", np.arange(-500, -440, dtype=np.int16).reshape(3, 4, 5))
    np.save(data / "array.npy", np.random.default_rng(0).random((8, 9), dtype=np.float32))
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(data / "picture.png")
    plan = planned(data, run)
    assert plan.data["modality"] == "CT" and plan.data["slice_axis"] == 2
    names = [Path(case["image"]).name for case in find_cases(run / "data").unlabeled]
    assert names == ["array.npy", "picture.png", "series"]


@pytest.mark.parametrize(("count", "validation"), [(1, 0), (2, 0), (3, 1), (6, 2), (8, 2)])
def test_a_quarter_of_the_labelled_scans_is_held_out(count: int, validation: int, data: Path, run: Path, capsys):
    plan = planned(labelled(data, count), run)
    assert len(find_cases(run / "data").validation) == validation
    kept = plan.stages["fine_tuning"].get("validate::dataset::data")
    assert kept == (None if validation else "$@data_set.cases.training")
    assert ("none is held out: the Dice" in capsys.readouterr().out) == (not validation)


def test_a_single_scan_is_its_own_validation_at_all_levels(data: Path, run: Path):
    plan = planned(labelled(data), run)
    for name in (*TEACHERS, *EXPERTS):
        assert plan.stages[name]["scans"].endswith(".without_held_out()")
    scans = find_unlabeled(run / "data").without_held_out()
    assert scans.training == scans.validation and len(scans.training) == 1 and scans.counts() == {"NIfTI": 1}
    ct(data / "u.nii.gz", seed=9)
    assert "scans" not in planned(data, run).stages["pixel_expert"]


def test_fifteen_classes_some_of_them_absent(data: Path, run: Path):
    ct(data / "a.nii.gz"), labels(data / "a_seg.nii.gz", *range(1, 12), 15)
    plan = planned(data, run)
    assert plan.data["class_names"] == ["background", *(f"class_{i}" for i in range(1, 16))]
    assert "no label holds class_12, class_13, class_14" in plan.reasons["data.class_names"]


def test_the_window_covers_the_labelled_voxels(data: Path, run: Path):
    image = np.full(SHAPE, -1000, np.int16)
    image[1:3, :4] = np.linspace(-900, 100, 12)
    write(data / "a.nii.gz", image), labels(data / "a_seg.nii.gz", 1, 2)
    plan = planned(data, run)
    low, high = plan.data["window"]
    assert -900 <= low <= -800 and high == 275
    assert "widened to the labelled voxels" in plan.reasons["data.window"]


def test_the_size_follows_the_slices_within_the_limits_of_the_base(data: Path, run: Path):
    labelled(data, shape=(40, 230, 100), affine=np.diag([3.0, 1, 1, 1]))
    plan = planned(data, run)
    assert plan.data["slice_axis"] == 0 and plan.network["image_size"] == 224
    assert "230 (median of the longer side)" in plan.reasons["network.image_size"]


def test_batches_and_size_fit_into_the_memory(data: Path, run: Path, monkeypatch: pytest.MonkeyPatch):
    labelled(data, shape=(200, 200, 4), affine=np.diag([1.0, 1, 5, 1]))
    assert planned(data, run).network["image_size"] == 192
    monkeypatch.setattr(stage_settings, "free_memory", lambda device: 1e6)
    plan = planned(data, run)
    assert plan.network["image_size"] == 128
    assert [plan.stages[name]["batch_size"] for name in TRAININGS] == [8, 8, 4, 4, 4, 2]


def test_slices_are_kept_on_disk_where_reading_takes_long(data: Path, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage_settings, "_SLOW_READING", 0.0)
    plan = planned(labelled(data), run)
    kept = {name for name in TRAININGS if plan.stages[name].get("cache_dir") == str(run / "slices")}
    assert kept == {*TEACHERS, *EXPERTS}


def test_given_steps_need_no_timing_and_are_shared_in_proportion(data: Path, run: Path):
    plan = planned(labelled(data), run, steps=200, decoder="hierarchical")
    assert {name: plan.stages[name]["steps"] for name in TRAININGS} == {
        **dict.fromkeys((*TEACHERS, *EXPERTS), 25),
        "pixel_expert": 100,
        "fine_tuning": 200,
    }
    assert plan.run["hours"] is None and plan.stages["fine_tuning"]["decoder"] == "hierarchical"
    assert planned(data, run, steps=1).stages["patch_teacher"]["steps"] == 1
    for stage in plan.stages.values():
        assert stage.get("warmup", 0) <= stage.get("steps", 0) / 5


def test_scans_of_two_modalities_are_refused(data: Path, run: Path, capsys: pytest.CaptureFixture[str]):
    labelled(data)
    file = mr(data / "u.nii.gz")
    with refused("two modalities", "s0.nii.gz' looks like CT", "u.nii.gz' looks like MR", "folder of its own"):
        planned(data, run)
    assert not (run / "plan.yaml").exists()
    assert planned(data, run, modality="CT").reasons["data.modality"] == "given with --modality"
    assert f"note: '{file}' looks as if it were no CT scan" in capsys.readouterr().out
    header = {"modality": {"0": "CT"}, "training": [{"image": "s0.nii.gz", "label": "s0_seg.nii.gz"}]}
    (data / "dataset.json").write_text(json.dumps(header | {"unlabeled": [{"image": "u.nii.gz"}]}))
    with refused("states that the scans are CT", f"'{file}' looks like MR", "--modality CT"):
        planned(data, run)


def test_another_modality_than_ct_and_mr_is_refused(data: Path, run: Path):
    labelled(data)
    write_dicom(data / "series", np.ones((3, 4, 5), np.int16), modality="PT")
    with refused("series' is a scan of modality PT, expected CT or MR"):
        planned(data, run)
    with refused("modality must be 'CT' or 'MR', got 'PT'"):
        planned(data, run, modality="PT")


def test_normalised_mr_is_not_taken_for_ct(data: Path, run: Path):
    write(data / "a.nii.gz", np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    labels(data / "a_seg.nii.gz", 1)
    plan = planned(data, run)
    assert plan.data["modality"] == "MR" and "check it" in plan.reasons["data.modality"]


def test_labels_of_another_scan_are_refused(data: Path, run: Path):
    ct(data / "a.nii.gz"), labels(data / "a_seg.nii.gz", 1, shape=(20, 24, 11))
    with refused("a_seg.nii.gz' is not on the grid of image", "shape [20, 24, 11], expected [20, 24, 12]"):
        planned(data, run)
    labels(data / "a_seg.nii.gz", 1, affine=np.diag([-1.0, 1, 2, 1]))
    with refused("affines differ by up to 1 mm"):
        planned(data, run)


def test_labels_with_unknown_values_are_refused(data: Path, run: Path):
    ct(data / "a.nii.gz"), labels(data / "a_seg.nii.gz", 255)
    with refused("have the values 0, 255, expected 0, 1, 2", "renumber"):
        planned(data, run)
    labels(data / "a_seg.nii.gz", 1, 3)
    header = {"labels": {"0": "background", "1": "liver"}, "training": [{"image": "a.nii.gz", "label": "a_seg.nii.gz"}]}
    (data / "dataset.json").write_text(json.dumps(header))
    with refused("a.nii.gz' has the value 3", "names only the values 0 to 1", "renumber"):
        planned(data, run)
    labels(data / "a_seg.nii.gz")
    with refused("no label", "has a voxel above 0"):
        planned(data, run)


def test_damaged_files(data: Path, run: Path, capsys: pytest.CaptureFixture[str]):
    """One without a label is left out with a note, one with a label is refused."""
    labelled(data)
    damaged = ct(data / "u.nii.gz", seed=9)
    damaged.write_bytes(damaged.read_bytes()[:-30])
    planned(data, run)
    assert find_cases(run / "data").unlabeled == ()
    out = capsys.readouterr().out
    assert f"note: left out: cannot read '{damaged}'" in out and "no scan without labels" in out
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 2), np.int16), LAS), data / "s0.nii.gz")
    with refused("s0.nii.gz' must be one 3-D volume"):
        planned(data, run)


def test_two_copies_of_a_labelled_scan_are_refused(data: Path, run: Path):
    labelled(data, 3)
    (data / "s2.nii.gz").write_bytes((data / "s0.nii.gz").read_bytes())
    with refused("s2.nii.gz' is a copy of", "s0.nii.gz', but each labelled scan counts once"):
        planned(data, run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"hours": 0, "steps": None}, "hours must be a number above 0, got 0"),
        ({"jobs": 0}, "jobs must be a whole number of at least 1, got 0"),
        ({"decoder": "unet"}, "unknown decoder 'unet'; choose --decoder sam or hierarchical"),
        ({"encoder": "vit_x"}, "unknown encoder 'vit_x'; choose one of vit_b"),
        ({"encoder": None}, "does not tell its encoder; give --encoder"),
        ({"checkpoint": "none.pt"}, "none.pt'; give --sam_checkpoint FILE"),
        ({"encoder": "vit_l", "checkpoint": None}, "download it with 'python -m samora_monai.download vit_l"),
        ({"device": "gpu"}, "unknown device 'gpu'; use --device cpu, cuda or cuda:N"),
        ({"device": "cuda:7"}, "device 'cuda:7' is not there"),
    ],
    ids=str,
)
def test_options_that_cannot_be_used(options: dict, message: str, data: Path, run: Path):
    with refused(message):
        planned(labelled(data), run, **options)


def test_a_file_of_meta_at_hand_is_the_base(data: Path, run: Path, capsys: pytest.CaptureFixture[str]):
    run.mkdir()
    (run / "sam2.1_hiera_tiny.pt").write_bytes(b"")
    plan = planned(labelled(data), run, encoder=None, checkpoint=None)
    assert plan.network["encoder"] == "sam2_tiny" and plan.network["sam_checkpoint"] == str(
        run / "sam2.1_hiera_tiny.pt"
    )
    assert "rank" not in plan.stages["fine_tuning"] and plan.stages["pixel_expert"]["learning_rate"] == 0.001
    assert "base: sam2_tiny" in capsys.readouterr().out


def test_scans_of_a_patient_are_in_one_list_and_every_class_is_trained(tmp_path: Path):
    data = tmp_path / "data"
    for patient in range(4):
        for frame in (1, 2):
            name = f"patient{patient}_frame{frame}"
            seed = 2 * patient + frame
            ct(data / f"{name}.nii.gz", seed=seed)
            labels(data / f"{name}_seg.nii.gz", 2 if patient == 0 else 1)
    for seed in range(4):
        run = tmp_path / f"run{seed}"
        planned(data, run, seed=seed)
        lists = json.loads((run / "data" / "dataset.json").read_text())
        training, validation = (
            {Path(case["image"]).name.split("_")[0] for case in lists[name]} for name in ("training", "validation")
        )
        assert len(validation) == 1 and not training & validation
        assert "patient0" in training, "the only one with class 2"


def test_an_organ_in_one_piece_in_every_label_keeps_its_largest_component(data: Path, run: Path):
    for i in range(3):
        ct(data / f"s{i}.nii.gz", seed=i)
        label = np.zeros(SHAPE, np.uint8)
        label[2:8, 2:8, 2:8] = 1  # in one piece
        label[12, 2:6, 2:6], label[16, 2:6, 2:6] = 2, 2  # in two, as kidneys with one name
        label[10, 20, 10] = 3 if i == 0 else 0  # in one label alone
        write(data / f"s{i}_seg.nii.gz", label)
    plan = planned(data, run)
    assert plan.stages["fine_tuning"]["largest_component"] == [1]
    assert plan.stages["fine_tuning"]["smoothing"] == 1.5
    assert "in one piece in each of at least 2 labels" in plan.reasons["stages.fine_tuning.largest_component"]
