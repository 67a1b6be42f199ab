"""The preparation of public data sets, on synthesised downloads of every form."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import itk
import nibabel as nib
import numpy as np
import pytest

from samora_monai.data import find_cases
from samora_monai.public_data import prepare as module
from samora_monai.public_data.prepare import main, prepare
from samora_monai.public_data.splits import SPLITS, Split
from tests.tiny import refused

SHAPE = (6, 5, 4)
BTCV = {1: 1, 2: 2, 3: 3, 4: 4, 6: 5, 7: 6, 8: 7, 11: 8}
TWO = {"case0005": 4, "case0006": 4}
SMALL = {
    "synapse": {"training": tuple(TWO), "validation": ("case0001",), "num_slices": TWO},
    "synapse_10pct": {
        "training": tuple(TWO),
        "validation": ("case0001",),
        "num_slices": TWO,
        "slices": {"case0005": (0, 2), "case0006": (3,)},
    },
    "la_4": {"training": ("B", "A"), "validation": ("C",)},
    "promise12_3": {"training": ("Case05",), "validation": ("Case12",)},
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published splits, cut to two or three cases."""
    splits = {name: Split(SPLITS[name].modality, SPLITS[name].class_names, **cut) for name, cut in SMALL.items()}
    monkeypatch.setattr(module, "SPLITS", splits)


def arrays(case: str, highest: int = 13) -> tuple[np.ndarray, np.ndarray]:
    """HU and BTCV labels (or 0 and 1) of a case, `[X, Y, Z]`; every label value occurs."""
    rng = np.random.default_rng(sum(map(ord, case)))
    label = rng.permutation(np.arange(np.prod(SHAPE)) % (highest + 1)).reshape(SHAPE)
    return rng.integers(-1000, 1000, SHAPE).astype(np.int16), label.astype(np.uint8)


def sameds(case: str) -> tuple[np.ndarray, np.ndarray]:
    """The case after SAMed's preprocessing: `[Z, Y, X]`, in [0, 1], renumbered."""
    hu, label = arrays(case)
    numbers = np.array([BTCV.get(value, 0) for value in range(14)])
    return ((np.clip(hu, -125, 275) + 125) / 400).astype(np.float32).transpose(2, 1, 0), numbers[label].transpose(
        2, 1, 0
    )


def write_btcv(source: Path) -> None:
    for folder in ("img", "label"):
        (source / "averagedTraining" / folder).mkdir(parents=True)
    for number in ("0001", "0005", "0006"):
        for kind, array in zip(("img", "label"), arrays(f"case{number}"), strict=True):
            image = nib.Nifti1Image(array, np.diag([-0.7, 0.7, 3, 1]))
            nib.save(image, source / "averagedTraining" / kind / f"{kind}{number}.nii.gz")


def write_samed(source: Path) -> None:
    (source / "train_npz").mkdir(parents=True)
    (source / "test_vol_h5").mkdir()
    for case in TWO:
        for number, (image, label) in enumerate(zip(*sameds(case), strict=True)):
            np.savez(source / "train_npz" / f"{case}_slice{number:03d}.npz", image=image, label=label)
    write_h5(source / "test_vol_h5" / "case0001.npy.h5", *sameds("case0001"))


def write_h5(file: Path, image: np.ndarray, label: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as content:
        content["image"], content["label"] = image, label


def write_uamt(source: Path) -> None:
    for case in "ABCD":
        image, label = arrays(case, 1)
        write_h5(source / case / "mri_norm2.h5", image / np.float32(512), label)


def write_itk(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = itk.image_from_array(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing((0.5, 0.5, 2.0))
    itk.imwrite(image, str(file))


def write_nrrd(source: Path) -> None:
    for case in "ABCD":
        image, label = arrays(case, 1)
        write_itk(source / case / "lgemri.nrrd", image)
        write_itk(source / case / "laendo.nrrd", label * 255)


def write_promise12(source: Path) -> None:
    for case in ("Case05", "Case12", "Case13"):
        image, label = arrays(case, 1)
        write_itk(source / "TrainingData" / f"{case}.mhd", image)
        write_itk(source / "TrainingData" / f"{case}_segmentation.mhd", label)
    write_itk(source / "TestData" / "Case05.mhd", image)  # another patient of that name, without a label


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "btcv": ("synapse", write_btcv),
    "samed": ("synapse", write_samed),
    "uamt": ("la_4", write_uamt),
    "nrrd": ("la_4", write_nrrd),
    "mhd": ("promise12_3", write_promise12),
}


@pytest.fixture
def download(tmp_path: Path) -> Callable[[str], Path]:
    def write(form: str) -> Path:
        WRITERS[form][1](tmp_path / form)
        return tmp_path / form

    return write


def load(file: str) -> tuple[np.ndarray, nib.Nifti1Image]:
    image: Any = nib.load(file)
    return np.asarray(image.dataobj), image


# ---- what is published


def test_published_counts():
    synapse, few = SPLITS["synapse"], SPLITS["synapse_10pct"]
    assert (len(synapse.training), len(synapse.validation), sum(synapse.num_slices.values())) == (18, 12, 2211)
    assert sum(map(len, few.slices.values())) == 221
    assert [case for case in few.training if max(few.slices[case]) >= few.num_slices[case]] == []
    assert [(len(SPLITS[name].training), len(SPLITS[name].validation)) for name in ("la_4", "promise12_3")] == [
        (4, 20),
        (3, 10),
    ]
    for split in SPLITS.values():
        assert len({*split.training, *split.validation}) == len(split.training) + len(split.validation)


# ---- each form


@pytest.mark.parametrize("form", WRITERS)
def test_the_bundle_reads_it(form: str, download: Callable[[str], Path], tmp_path: Path):
    dataset, _ = WRITERS[form]
    datalist = prepare(dataset, download(form), tmp_path / "out")
    cases = find_cases(datalist.parent)
    names = [Path(case["image"]).name.removesuffix(".nii.gz") for case in (*cases.training, *cases.validation)]
    assert names == [*SMALL[dataset]["training"], *SMALL[dataset]["validation"]]
    assert (cases.class_names, cases.modality) == (SPLITS[dataset].class_names, SPLITS[dataset].modality)
    others = {"la_4": ["D.nii.gz"], "promise12_3": ["Case13.nii.gz"]}.get(dataset, [])
    assert [Path(case["image"]).name for case in cases.unlabeled] == others
    for case in (*cases.training, *cases.validation):
        (image, header), (label, other) = load(case["image"]), load(case["label"])
        assert image.shape == label.shape == SHAPE and label.dtype == np.uint8
        assert np.array_equal(header.affine, other.affine)


def test_btcv(download: Callable[[str], Path], tmp_path: Path):
    prepare("synapse", download("btcv"), tmp_path / "out")
    hu, label = arrays("case0005")
    written, image = load(f"{tmp_path}/out/images/case0005.nii.gz")
    assert np.array_equal(written, hu) and written.dtype == np.int16
    assert np.allclose(image.affine, np.diag([-0.7, 0.7, 3, 1]))
    organs, _ = load(f"{tmp_path}/out/labels/case0005.nii.gz")
    for theirs in range(14):
        assert (organs[label == theirs] == BTCV.get(theirs, 0)).all()


def test_both_forms_of_synapse_are_equal(download: Callable[[str], Path], tmp_path: Path):
    """Except for values outside the window, and the geometry."""
    prepare("synapse", download("btcv"), tmp_path / "a")
    prepare("synapse", download("samed"), tmp_path / "b")
    for case in ("case0001", "case0005", "case0006"):
        assert np.array_equal(*(load(f"{tmp_path}/{run}/labels/{case}.nii.gz")[0] for run in "ab"))
        a, b = (load(f"{tmp_path}/{run}/images/{case}.nii.gz")[0] for run in "ab")
        assert np.array_equal(np.clip(a, -125, 275), b)
    description = json.loads((tmp_path / "b" / "dataset.json").read_text())["description"]
    assert "clipped to [-125, 275] HU" in description and "distances in voxels" in description


@pytest.mark.parametrize("form", ["btcv", "samed"])
def test_only_the_published_slices(form: str, download: Callable[[str], Path], tmp_path: Path):
    prepare("synapse_10pct", download(form), tmp_path / "out")
    whole = np.clip(arrays("case0005")[0], -125, 275)
    assert np.array_equal(np.clip(load(f"{tmp_path}/out/images/case0005.nii.gz")[0], -125, 275), whole[..., [0, 2]])
    assert load(f"{tmp_path}/out/labels/case0006.nii.gz")[0].shape == (6, 5, 1)
    assert load(f"{tmp_path}/out/images/case0001.nii.gz")[0].shape == SHAPE  # a test case is whole


def test_la(download: Callable[[str], Path], tmp_path: Path):
    prepare("la_4", download("uamt"), tmp_path / "out")
    image, label = arrays("A", 1)
    written, header = load(f"{tmp_path}/out/images/A.nii.gz")
    assert np.array_equal(written, image / np.float32(512))
    assert nib.orientations.aff2axcodes(header.affine) == ("L", "P", "S")
    assert np.array_equal(load(f"{tmp_path}/out/labels/A.nii.gz")[0], label)
    assert not (tmp_path / "out" / "labels" / "D.nii.gz").exists()


@pytest.mark.parametrize(("form", "case"), [("nrrd", "A"), ("mhd", "Case05")])
def test_itk_formats_keep_their_geometry(form: str, case: str, download: Callable[[str], Path], tmp_path: Path):
    prepare(WRITERS[form][0], download(form), tmp_path / "out")
    image, label = arrays(case, 1)
    written, header = load(f"{tmp_path}/out/images/{case}.nii.gz")
    assert np.array_equal(written, image)
    assert np.allclose(header.affine, np.diag([-0.5, -0.5, 2, 1]))
    assert np.array_equal(load(f"{tmp_path}/out/labels/{case}.nii.gz")[0], label)


# ---- interruptions and other contents


def test_goes_on_after_an_interruption(download: Callable[[str], Path], tmp_path: Path, capsys, monkeypatch):
    source, out = download("btcv"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", _stop_at(4, module.write_atomically))
        with pytest.raises(KeyboardInterrupt):
            prepare("synapse", source, out)
    assert not (out / "dataset.json").exists()
    kept = out / "images" / "case0005.nii.gz"
    written = kept.stat().st_mtime_ns
    capsys.readouterr()
    prepare("synapse", source, out)
    assert capsys.readouterr().out.splitlines() == [
        "[1/3] case0005: already there",
        "[2/3] case0006: 6 x 5 x 4",
        "[3/3] case0001: 6 x 5 x 4",
    ]
    assert kept.stat().st_mtime_ns == written
    assert sorted(path.name for path in out.iterdir()) == ["dataset.json", "images", "labels"]
    prepare("synapse", source, out)  # all is there
    assert capsys.readouterr().out.count("already there") == 3


def _stop_at(call: int, write: Callable) -> Callable:
    calls: list[Path] = []

    def stopping(image: Any, file: Path) -> None:
        calls.append(file)
        if len(calls) == call:
            raise KeyboardInterrupt
        write(image, file)

    return stopping


def test_never_writes_among_other_things(download: Callable[[str], Path], tmp_path: Path):
    source = download("btcv")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    prepare("synapse", source, tmp_path / "out")
    before = (tmp_path / "out" / "dataset.json").read_text()
    with refused("mine' already exists", "give a new folder"):
        prepare("synapse", source, tmp_path / "mine")
    with refused("file' already exists"):
        prepare("synapse", source, tmp_path / "file")
    with refused("out' already exists"):
        prepare("synapse_10pct", source, tmp_path / "out")
    with refused("out' already exists"):  # the same cases from another form
        prepare("synapse", download("samed"), tmp_path / "out")
    with refused("btcv' already exists"):
        prepare("synapse", source, source)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert (tmp_path / "out" / "dataset.json").read_text() == before


# ---- wrong sources


def test_wrong_folders(download: Callable[[str], Path], tmp_path: Path):
    source, out = download("btcv"), tmp_path / "out"
    with refused("unknown data set 'btcv'", "synapse, synapse_10pct, la_4, promise12_3"):
        prepare("btcv", source, out)
    with refused("nowhere' does not exist"):
        prepare("synapse", tmp_path / "nowhere", out)
    with refused("no file of la_4 in", "<case>/mri_norm2.h5, or <case>/lgemri.nrrd and laendo.nrrd"):
        prepare("la_4", source, out)
    download("samed")
    with refused("holds synapse in two forms", "give the folder of one of them"):
        prepare("synapse", tmp_path, out)
    (source / "averagedTraining" / "img" / "img0005.nii.gz").unlink()
    with refused("label0005.nii.gz' has no image"):
        prepare("synapse", source, out)
    (source / "averagedTraining" / "label" / "label0005.nii.gz").unlink()
    with refused("lacks 1 of the 3 cases of synapse: case0005"):
        prepare("synapse", source, out)
    assert not out.exists()


def _spoil_value(source: Path) -> None:
    file = source / "averagedTraining" / "label" / "label0005.nii.gz"
    nib.save(nib.Nifti1Image(np.full(SHAPE, 77, np.uint8), np.diag([-0.7, 0.7, 3, 1])), file)


def _spoil_affine(source: Path) -> None:
    nib.save(nib.Nifti1Image(arrays("a")[1], np.eye(4)), source / "averagedTraining" / "label" / "label0005.nii.gz")


def _spoil_length(source: Path) -> None:
    for kind in ("img", "label"):
        file = source / "averagedTraining" / kind / f"{kind}0005.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros((6, 5, 3), np.uint8), np.eye(4)), file)


def _spoil_shape(source: Path) -> None:
    file = source / "averagedTraining" / "label" / "label0005.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((6, 4, 4), np.uint8), np.diag([-0.7, 0.7, 3, 1])), file)


def _cut(name: str) -> Callable[[Path], None]:
    def cut(source: Path) -> None:
        file = next(source.rglob(name))
        file.write_bytes(file.read_bytes()[:50])

    return cut


def _without_label(source: Path) -> None:
    np.savez(source / "train_npz" / "case0005_slice001.npz", image=np.zeros((5, 6), np.float32))


def _in_hu(source: Path) -> None:
    write_h5(source / "test_vol_h5" / "case0001.npy.h5", arrays("a")[0], arrays("a")[1] * 0)


@pytest.mark.parametrize(
    ("form", "spoil", "words"),
    [
        ("btcv", _spoil_value, ["label0005.nii.gz' has the value 77", "expected one of 0, 1, 2"]),
        ("btcv", _spoil_affine, ["label0005.nii.gz' is not on the grid of", "img0005.nii.gz"]),
        ("btcv", _spoil_length, ["case0005 has 3 slices, expected 4 as published"]),
        ("btcv", _spoil_shape, ["the image of case0005 has the shape [6, 5, 4] and its label [6, 4, 4]"]),
        ("btcv", _cut("img0005.nii.gz"), ["cannot read", "img0005.nii.gz'"]),
        (
            "samed",
            lambda s: next(s.rglob("case0005_slice001.npz")).unlink(),
            ["slice 001 of the case of", "is missing"],
        ),
        ("samed", lambda s: next(s.rglob("case0005_slice003.npz")).unlink(), ["case0005 has 3 slices, expected 4"]),
        ("samed", _cut("case0006_slice002.npz"), ["case0006_slice002.npz' has no arrays image and label"]),
        ("samed", _without_label, ["case0005_slice001.npz' has no arrays image and label"]),
        ("samed", _in_hu, ["case0001.npy.h5' has values from", "expected 0 to 1"]),
        ("samed", _cut("case0001.npy.h5"), ["case0001.npy.h5' has no arrays image and label"]),
        ("mhd", _cut("Case12.mhd"), ["cannot read", "Case12.mhd'"]),
    ],
)
def test_wrong_files(form: str, spoil, words: list[str], download: Callable[[str], Path], tmp_path: Path):
    source = download(form)
    spoil(source)
    with refused(*words):
        prepare(WRITERS[form][0], source, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_without_h5py(download: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, original = download("uamt"), builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with refused("needs h5py", "pip install 'samora_monai[prepare]'"):
        prepare("la_4", source, tmp_path / "out")


def test_command_line(download: Callable[[str], Path], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    source = download("mhd")
    monkeypatch.setattr("sys.argv", ["prepare", "promise12_3", str(source), str(tmp_path / "out")])
    main()
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "dataset.json")
    monkeypatch.setattr("sys.argv", ["prepare", "la_4", str(source), str(tmp_path / "la")])
    with pytest.raises(SystemExit, match="no file of la_4"):
        main()
