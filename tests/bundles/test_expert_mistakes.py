"""Mistakes of users with the expert bundles end in one line; formats and folders may be mixed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samora_monai.networks import LEVELS
from samora_monai.pretraining import MAETeacher, SimCLRTeacher, save_teacher
from samora_monai.pretraining.mae import MAE_PRESETS
from samora_monai.pretraining.simclr import SIMCLR_PRESETS
from tests.bundles.command_line import FAST_EXPERT, FAST_TEACHER, Bundle, files, refused
from tests.bundles.conftest import TrainedExpert
from tests.bundles.weights import write_sam
from tests.tiny import truncate

TAUGHT = tuple(FAST_TEACHER)
Experts = dict[str, TrainedExpert]
Make = Callable[..., Bundle]


def write_picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40), np.uint8)).save(path)
    return path


# ---- teachers: each function writes the wrong file, or none, and returns words of the message


def no_teacher(experts: Experts, level: str, teacher: Path) -> list[str]:
    return [f"there is no {NAMES[level]} teacher '{teacher}'", *HOW]


def teacher_of_another_method(experts: Experts, level: str, teacher: Path) -> list[str]:
    other = {"image": "patch", "patch": "image"}[level]
    shutil.copy(experts[other].teacher, teacher)
    return [f"'teacher.pt' is of method {NAMES[other]}; expected one of {NAMES[level]}"]


def teacher_of_another_preset(experts: Experts, level: str, teacher: Path) -> list[str]:
    """The file of a larger teacher, and `--teacher_network tiny`."""
    net = (
        SimCLRTeacher(SIMCLR_PRESETS["tiny"] | {"width": 24})
        if level == "image"
        else MAETeacher(MAE_PRESETS["tiny"] | {"depth": 5})
    )
    save_teacher(net, teacher)
    return ["'teacher.pt' was made for preset " + net.preset + " but the network has tiny"]


def sam_as_teacher(experts: Experts, level: str, teacher: Path) -> list[str]:
    write_sam(teacher)
    return ["'teacher.pt' is a SAM checkpoint", f"{NAMES[level]} teacher file of ours"]


def expert_as_teacher(experts: Experts, level: str, teacher: Path) -> list[str]:
    shutil.copy(experts[level].expert, teacher)
    return ["'teacher.pt' is an expert file"]


def rotted_teacher(experts: Experts, level: str, teacher: Path) -> list[str]:
    shutil.copy(experts[level].teacher, teacher)
    truncate(teacher)
    return [f"'{teacher}' is damaged or no PyTorch file"]


HOW = [
    "a random teacher teaches nothing",
    "python -m monai.bundle run teacher",
    """--config_file "['configs/train.yaml','configs/teacher.yaml']" --dataset_dir DIR""",
    "--teacher_checkpoint FILE",
]
NAMES = {"image": "SimCLR", "patch": "MAE"}


@pytest.mark.parametrize(
    "spoil",
    [
        no_teacher,
        teacher_of_another_method,
        teacher_of_another_preset,
        sam_as_teacher,
        expert_as_teacher,
        rotted_teacher,
    ],
)
@pytest.mark.parametrize("level", TAUGHT)
def test_wrong_teacher(
    experts: Experts,
    expert_bundle: Make,
    phantoms: Path,
    sam: Path,
    level: str,
    spoil: Callable[[Experts, str, Path], list[str]],
):
    """In the default place, `models/teacher.pt`."""
    bundle = expert_bundle(level)
    words = spoil(experts, level, bundle.root / "models" / "teacher.pt")
    before = files(bundle.root)
    refused(bundle("training", dataset_dir=phantoms, sam_checkpoint=sam, **FAST_EXPERT[level]), *words)
    assert files(bundle.root) == before


@pytest.mark.parametrize(("level", "public"), [("image", "r50_2x_sk1.pth"), ("patch", "mae_pretrain_vit_large")])
def test_no_teacher_on_purpose(expert_bundle: Make, phantoms: Path, sam: Path, level: str, public: str):
    """A random teacher cannot be asked for."""
    bundle = expert_bundle(level)
    settings = FAST_EXPERT[level] | {"teacher_checkpoint": "none", "sam_checkpoint": sam}
    finished = bundle("training", dataset_dir=phantoms, **settings)
    refused(finished, f"no {NAMES[level]} teacher was given", *HOW, public)


@pytest.mark.parametrize("level", TAUGHT)
def test_initial_checkpoint_of_a_teacher_does_not_exist(
    expert_bundle: Make, phantoms: Path, tmp_path: Path, level: str
):
    """Random weights do not replace a missing file."""
    settings = FAST_TEACHER[level] | {"initial_checkpoint": tmp_path / "public.pth"}
    refused(expert_bundle(level)("teacher", dataset_dir=phantoms, **settings), f"no checkpoint '{tmp_path}/public.pth'")


# ---- the base


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("given", ["none", "sam.pth"])
def test_no_base(experts: Experts, expert_bundle: Make, phantoms: Path, level: str, given: str):
    """A random base cannot be asked for, because an expert on it would be useless."""
    bundle = expert_bundle(level)
    settings = FAST_EXPERT[level] | ({"teacher_checkpoint": experts[level].teacher} if level in TAUGHT else {})
    refused(
        bundle("training", dataset_dir=phantoms, sam_checkpoint=given, **settings),
        f"no SAM checkpoint '{given}'" if given == "sam.pth" else "an expert is made for one base, and none was given",
        "python -m monai.bundle download_large_files --bundle_path .",
        "--sam_checkpoint FILE",
    )


# ---- scans


def no_folder(data: Path) -> list[str]:
    shutil.rmtree(data)
    return [f"'{data}' does not exist"]


def empty_folder(data: Path) -> list[str]:
    no_folder(data)
    data.mkdir()
    return [f"nothing to learn from in '{data}'", ".nii.gz", "DICOM"]


def labels_alone(data: Path) -> list[str]:
    for path in (data / "dataset.json", data / "imagesTr", data / "imagesVal"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [f"nothing to learn from in '{data}'", "2 files or folders are named as labels"]


def a_single_scan(data: Path) -> list[str]:
    scan = data / "imagesTr" / "phantom_001.nii.gz"
    content = scan.read_bytes()
    empty_folder(data)
    (data / scan.name).write_bytes(content)
    return [f"no scan of {data} is held out", "give two scans or more"]


def truncated_scan(data: Path) -> list[str]:
    truncate(data / "imagesTr" / "phantom_002.nii.gz")
    return [f"cannot read '{data}/imagesTr/phantom_002.nii.gz'"]


def truncated_held_out_scan(data: Path) -> list[str]:
    truncate(data / "imagesVal" / "phantom_004.nii.gz")
    return [f"cannot read '{data}/imagesVal/phantom_004.nii.gz'"]


def air(data: Path) -> list[str]:
    """Below the window everywhere."""
    empty_folder(data)
    for name in "ab":
        np.save(data / f"{name}.npy", np.full((3, 40, 40), -1000, np.int16))
    return ["each of the 3 slices has less than 0.05 of its pixels above 0.1", "--min_content", "window"]


@pytest.mark.parametrize(
    "spoil",
    [no_folder, empty_folder, labels_alone, a_single_scan, truncated_scan, truncated_held_out_scan, air],
)
@pytest.mark.parametrize("workflow", ["training", "teacher"])
def test_spoiled_data(expert_bundle: Make, data: Path, sam: Path, workflow: str, spoil: Callable[[Path], list[str]]):
    words = spoil(data)
    bundle = expert_bundle("pixel" if workflow == "training" else "patch")
    before = files(bundle.root)
    settings = FAST_TEACHER["patch"] if workflow == "teacher" else FAST_EXPERT["pixel"] | {"sam_checkpoint": sam}
    refused(bundle(workflow, dataset_dir=data, **settings), *words)
    assert files(bundle.root) == before


def test_unreadable_scans_are_left_out_when_asked(expert_bundle: Make, data: Path, sam: Path):
    """Each is reported twice: when it occurs, with the reason, and in the summary."""
    for scan in (truncated := [data / "imagesTr" / "phantom_002.nii.gz", data / "imagesVal" / "phantom_004.nii.gz"]):
        truncate(scan)
    settings = FAST_EXPERT["pixel"] | {"epochs": 1, "skip_unreadable": "true"}
    finished = expert_bundle("pixel")("training", dataset_dir=data, sam_checkpoint=sam, **settings)
    assert finished.code == 0, finished
    for scan in truncated:
        assert f"left out: cannot read '{scan}'" in finished.out + finished.err
        assert f"unreadable  {scan}\n" in finished.out
    assert "training    1 scans, 10 slices" in finished.out and "held out    1 scans, " in finished.out


# ---- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epoch": 1}, ["unknown setting 'epoch'", "did you mean 'epochs'"]),
        ({"unlabelled": "DIR"}, ["unknown setting 'unlabelled'", "did you mean 'unlabeled'"]),
        ({"rank": "low"}, ["'--rank' must be a number, got 'low'"]),
        ({"batch_size": 0}, ["batch_size must be a whole number of at least 1, got 0"]),
        ({"noise": 0}, ["noise must be a number above 0, got 0"]),
        ({"validation_fraction": 1}, ["validation_fraction must be at least 0 and below 1, got 1"]),
        ({"validation_fraction": 0, "datalist": "dataset.json"}, None),  # the datalist has held-out scans
        ({"min_content": 2}, ["min_content must be a part of the pixels from 0 to 1, got 2"]),
        ({"modality": "PET"}, ["modality", "'PET'", "CT"]),
        ({"window": "[275,-125]"}, ["window must be two increasing numbers"]),
        ({"image_size": 100}, ["image_size is 100", "multiple of 16"]),
        ({"encoder": "vit_x"}, ["unknown encoder 'vit_x'", "vit_b"]),
        ({"device": "cuda:99"}, ["device 'cuda:99' cannot be used", "--device cpu"]),
        ({"array_slice_axis": 5}, ["array_slice_axis must be 0, 1 or 2, got 5"]),
        ({"skip_unreadable": "yes"}, ["expected true or false for skip_unreadable, got 'yes'"]),
        ({"datalist": "fold_1.json"}, ["fold_1.json' does not exist"]),
        ({"learning_rate": 1e30}, ["the loss became", "lower --learning_rate"]),
        ({"resume": True}, ["eval/last.pt' is not there", "start without resuming"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_setting(
    expert_bundle: Make, phantoms: Path, sam: Path, settings: dict[str, Any], words: list[str] | None
):
    bundle = expert_bundle("pixel")
    finished = bundle("training", dataset_dir=phantoms, **FAST_EXPERT["pixel"] | {"sam_checkpoint": sam} | settings)
    if words is None:
        assert (finished.code, finished.complaints) == (0, [])
        return
    refused(finished, *words)
    assert list(files(bundle.root / "models")) == []


@pytest.mark.parametrize(
    ("level", "settings", "words"),
    [
        ("image", {"temperature": "warm"}, ["'--temperature' must be a number"]),
        ("image", {"batch_size": 1}, ["batch_size must be a whole number of at least 2, got 1"]),
        ("patch", {"mask_ratio": 1}, ["mask_ratio is 1", "between 0 and 1"]),
        ("image", {"teacher_network": "r18"}, ["unknown SimCLR preset 'r18'", "tiny"]),
        ("patch", {"teacher_network": "vit_s"}, ["unknown MAE preset 'vit_s'", "tiny"]),
        (
            "image",
            {"sam_checkpoint": "sam.pth"},
            ["--sam_checkpoint sam.pth has no meaning for a teacher; leave it out"],
        ),
        ("patch", {"rank": 8}, ["--rank 8 has no meaning for a teacher"]),
        ("patch", {"norm_pix": "yes"}, ["expected true or false for norm_pix, got 'yes'"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_setting_of_a_teacher(
    expert_bundle: Make, phantoms: Path, level: str, settings: dict[str, Any], words: list[str]
):
    bundle = expert_bundle(level)
    refused(bundle("teacher", dataset_dir=phantoms, **FAST_TEACHER[level] | settings), *words)
    assert list(files(bundle.root / "models")) == []


# ---- mixed formats


def test_formats_and_roots_may_be_mixed(expert_bundle: Make, phantoms: Path, sam: Path, tmp_path: Path):
    """A tree of volumes and pictures, and a second root; labels are skipped; the summary lists all of it."""
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "deep" / "labelsTr").mkdir(parents=True)
    shutil.copy(phantoms / "imagesTr" / "phantom_001.nii.gz", one / "deep")
    shutil.copy(phantoms / "labelsTr" / "phantom_001.nii.gz", one / "deep" / "labelsTr")
    shutil.copy(phantoms / "labelsTr" / "phantom_001.nii.gz", one / "deep" / "phantom_001_seg.nii.gz")
    noise = np.random.default_rng(0).random((5, 40, 40)).astype(np.float32)
    np.save(one / "array.npy", noise)
    np.savez(one / "more.npz", image=noise)
    for i in range(3):
        write_picture(two / f"{i}.png", i)
    write_picture(two / "3.jpg", 3)
    write_picture(two / "4.tif", 4)
    write_picture(two / "masks" / "0.png", 5)
    settings = FAST_EXPERT["pixel"] | {"epochs": 1, "sam_checkpoint": sam, "unlabeled": [str(two), str(one)]}
    finished = expert_bundle("pixel")("training", **settings)
    assert (finished.code, finished.complaints) == (0, [])
    rows = re.findall(r"^(data|files|passed over|training|held out) +(.*)$", finished.out, re.MULTILINE)
    assert rows[:-2] == [
        ("data", f"{one}, {two}"),
        ("files", "1 NIfTI, 1 npy, 1 npz, 3 PNG, 1 JPEG, 1 TIFF"),
        ("passed over", f"folder of labels {one}/deep/labelsTr"),
        ("passed over", f"folder of labels {two}/masks"),
        ("passed over", f"1 label files, e.g. {one}/deep/phantom_001_seg.nii.gz"),
    ]
    slices = [re.match(r"(\d+) scans, (\d+) slices", text) for _, text in rows[-2:]]
    assert sum(int(match[1]) for match in slices) == 8
    assert sum(int(match[2]) for match in slices) == 10 + 5 + 5 + 5  # no slice is left out
