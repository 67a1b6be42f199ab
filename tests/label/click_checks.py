"""Clicks and Next Sample on real servers, with the requests of 3D Slicer and OHIF: `make test-label`.

The first server starts with no label and no model, by prompts alone; the second has a model.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from samora_monai.synthetic.phantoms import CLASS_NAMES, write_phantoms
from tests.label.models import write_model
from tests.label.server import NAME, TIMEOUT, Server

CLICK, CLICK_3D = "samora_click", "samora_click_3d"
IMAGE = "phantom_004"  # neither RAS nor isotropic


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_phantoms(folder, num_training=5, num_validation=1, shape=(48, 48, 8))
    return folder


def serve(folder: Path, scans: Path, model: Path, *options: str) -> Iterator[Server]:
    (folder / "studies").mkdir()
    for scan in (scans / "imagesTr").iterdir():
        shutil.copy(scan, folder / "studies")
    server = Server(folder, model, folder / "studies", *options)
    server.start()
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.fixture(scope="module")
def bare(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without a model."""
    yield from serve(tmp_path_factory.mktemp("bare"), scans, Path("none"), "--labels", "liver,spleen")


@pytest.fixture(scope="module")
def trained(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model of seeded random weights."""
    folder = tmp_path_factory.mktemp("trained")
    write_model(folder / "bundle")
    yield from serve(folder, scans, folder / "bundle")


def liver(scans: Path) -> tuple[np.ndarray, list[int], int]:
    """The liver of `IMAGE`, the voxel in the middle of its largest slice, and the axis of the slices."""
    image = nib.load(scans / "labelsTr" / f"{IMAGE}.nii.gz")
    axis = int(nib.io_orientation(image.affine)[:, 0].tolist().index(2))
    mask = np.asanyarray(image.dataobj) == CLASS_NAMES.index("liver")
    sums = mask.sum(tuple(i for i in range(3) if i != axis))
    voxels = np.argwhere(mask)
    voxels = voxels[voxels[:, axis] == sums.argmax()]
    middle = voxels[np.square(voxels - voxels.mean(0)).sum(1).argmin()]
    return mask, [int(value) for value in middle], axis


def click(server: Server, model: str, file: Path, **params: Any) -> np.ndarray:
    answer = server.form("POST", f"/infer/{model}", given=params, image=IMAGE, output="image")
    assert answer.status == 200, answer.body
    file.write_bytes(answer.body)
    scan, label = nib.load(server.studies / f"{IMAGE}.nii.gz"), nib.load(file)
    np.testing.assert_allclose(label.affine, scan.affine, atol=1e-3)
    values = np.asanyarray(label.dataobj)
    assert values.shape == scan.shape and values.dtype == np.uint8 and set(np.unique(values)) <= {0, 1}
    return values


def scored(server: Server) -> None:
    """Wait until the background has nothing left to do."""
    end = time.monotonic() + TIMEOUT
    while True:
        answer = server.get("/scoring/", all="true")
        if answer.status == 200 and all(task["status"] not in ("SUBMITTED", "RUNNING") for task in answer.json):
            assert all(task["status"] == "DONE" for task in answer.json), answer.json
            return
        assert time.monotonic() < end, answer.body
        time.sleep(0.5)


def test_a_project_starts_without_model_and_labels(bare: Server):
    info = bare.get("/info/").json
    assert info["labels"] == ["liver", "spleen"] and set(info["models"]) == {CLICK, CLICK_3D}
    assert {name: model["type"] for name, model in info["models"].items()} == {CLICK: "deepgrow", CLICK_3D: "deepgrow"}
    assert (info["models"][CLICK]["dimension"], info["models"][CLICK_3D]["dimension"]) == (2, 3)
    assert {"mixed", "representative", "uncertain", "random", "first"} <= set(info["strategies"])


def test_a_click_of_slicer_segments_its_slice(bare: Server, scans: Path, tmp_path: Path):
    _, middle, axis = liver(scans)
    params = {"label": "liver", "foreground": [middle], "background": [], "slice": middle[2]}
    label = click(bare, CLICK, tmp_path / "label.nii.gz", **params)
    assert label[tuple(middle)] == 1
    assert set(np.unique(np.nonzero(label)[axis])) == {middle[axis]}
    again = click(bare, CLICK, tmp_path / "again.nii.gz", **params)
    assert np.array_equal(again, label)


def test_a_click_of_ohif_is_answered_with_its_file_type(bare: Server, scans: Path):
    _, middle, _ = liver(scans)
    params = {"foreground": [middle], "background": [], "result_extension": ".nrrd", "result_compress": False}
    answer = bare.form("POST", f"/infer/{CLICK}", given=params, image=IMAGE, output="image")
    assert answer.status == 200 and answer.body.startswith(b"NRRD")


def test_a_box_and_a_reach_in_three_dimensions(bare: Server, scans: Path, tmp_path: Path):
    mask, middle, axis = liver(scans)
    voxels = np.argwhere(mask)
    roi = [int(v) for pair in zip(voxels.min(0), voxels.max(0), strict=True) for v in reversed(pair)]
    boxed = click(bare, CLICK_3D, tmp_path / "box.nii.gz", label="liver", foreground=[], background=[], roi=roi)
    assert set(np.unique(np.nonzero(boxed)[axis])) <= set(range(voxels[:, axis].min(), voxels[:, axis].max() + 1))
    alone = click(bare, CLICK_3D, tmp_path / "alone.nii.gz", foreground=[middle], background=[], reach=0)
    wide = click(bare, CLICK_3D, tmp_path / "wide.nii.gz", foreground=[middle], background=[], reach=[2, 0])
    assert len(np.unique(np.nonzero(alone)[axis])) == 1 and alone.sum() <= wide.sum()


def test_bad_prompts_get_one_sentence(bare: Server, scans: Path):
    _, middle, _ = liver(scans)
    for params, words in (
        ({}, "no point inside the object"),
        ({"foreground": [[999, 1, 1]]}, "outside of the image"),
        ({"foreground": "all"}, "foreground"),  # by the guard, as the last two
        ({"foreground": [1, 2]}, "must be a list of voxels"),
        ({"foreground": [middle], "start_from": "final"}, "has no label 'final'"),
        ({"foreground": [middle], "start_from": "../../x"}, "none, original or final"),
        ({"foreground": [middle], "draft": "/etc/passwd"}, "draft"),  # a path is not for clients
    ):
        answer = bare.form("POST", f"/infer/{CLICK}", given=params, image=IMAGE, output="image")
        assert answer.status == 400 and words in answer.json["detail"] and "\n" not in answer.json["detail"]


def test_next_sample_is_representative_without_a_model(bare: Server, scans: Path):
    scored(bare)
    handed = [bare.post("/activelearning/representative", {}).json["id"] for _ in range(3)]
    assert len(set(handed)) == 3
    assert "without a score" not in bare.log.read_text()
    label = scans / "labelsTr" / f"{handed[0]}.nii.gz"
    assert bare.form("PUT", "/datastore/label", {"label": label}, image=handed[0], tag="final").status == 200
    assert bare.post("/activelearning/mixed", {}).json["id"] not in handed
    uncertain = bare.post("/activelearning/uncertain", {})
    assert uncertain.status == 200 and uncertain.json["id"] != handed[0]
    assert "'uncertain' chose" in bare.log.read_text()


def test_a_stored_label_is_the_draft(trained: Server, scans: Path, tmp_path: Path):
    _, middle, _ = liver(scans)
    label = scans / "labelsTr" / f"{IMAGE}.nii.gz"
    assert trained.form("PUT", "/datastore/label", {"label": label}, image=IMAGE, tag="final").status == 200
    params = {"label": "liver", "foreground": [middle], "background": []}
    plain = click(trained, CLICK, tmp_path / "plain.nii.gz", **params)
    draft = click(trained, CLICK, tmp_path / "draft.nii.gz", start_from=["final", "none"], **params)
    assert not np.array_equal(plain, draft)


def test_uncertain_scans_are_those_of_the_served_model(trained: Server):
    info = trained.get("/info/").json
    assert set(info["models"]) == {NAME, CLICK, CLICK_3D} and list(info["models"][CLICK]["labels"]) == list(
        CLASS_NAMES[1:]
    )
    assert set(info["scoring"]) == {"samora_features", "samora_uncertainty"}
    scored(trained)
    handed = [trained.post("/activelearning/uncertain", {}).json for _ in range(3)]
    scores = [answer["samora"]["uncertainty"] for answer in handed]
    assert scores[0] == max(scores) and IMAGE not in [answer["id"] for answer in handed]
    assert trained.get("/datastore/").json["total"] == 5
