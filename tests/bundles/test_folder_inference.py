"""Inference over a folder: killed and started again, shared by several processes, with broken scans in it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from samora_monai.replacing import replacing
from samora_monai.workflow.error_hook import user_message
from tests.bundles import test_two_processes
from tests.bundles.command_line import Bundle, Finished, files, wait_until
from tests.bundles.conftest import Trained
from tests.bundles.test_workflow import write_dicom

OVERLAY = "multi_gpu_inference.yaml"
SCANS = ("a/scan.nii.gz", "b/scan.nii.gz", "c.nii.gz", "d.nii.gz", "e.nii.gz")
LABELS = ["a/scan_seg.nii.gz", "b/scan_seg.nii.gz", "c_seg.nii.gz", "d_seg.nii.gz", "e_seg.nii.gz", "s_seg.nii.gz"]
GOOD = [name for name in LABELS if name not in ("a/scan_seg.nii.gz", "d_seg.nii.gz")]
Launch = test_two_processes.Launch
launch = test_two_processes.launch  # the fixture: forked, or under torchrun


@pytest.fixture(scope="module")
def whole(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans, one of them a DICOM series and two with one name, and their labels. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    phantoms = sorted(trained.data.glob("images*/*.nii.gz"))
    for i, scan in enumerate(SCANS):
        (folder / "scans" / scan).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(phantoms[i % len(phantoms)], folder / "scans" / scan)
    write_dicom(folder / "scans" / "s", phantoms[0])
    finished = trained.bundle("inference", dataset_dir=folder / "scans", output_dir=folder / "labels")
    assert (finished.code, finished.complaints) == (0, [])
    assert sorted(files(folder / "labels")) == LABELS
    return folder


@pytest.fixture
def scans(whole: Path, tmp_path: Path) -> Path:
    """The scans, to be spoiled; their times of change are those of the originals."""
    return Path(shutil.copytree(whole / "scans", tmp_path / "scans"))


@pytest.fixture
def labels(whole: Path, tmp_path: Path) -> Path:
    """The labels of a finished run, to be spoiled."""
    return Path(shutil.copytree(whole / "labels", tmp_path / "labels"))


def equal(labels: Path, whole: Path) -> None:
    """All labels, and nothing else, as the uninterrupted run left them."""
    assert sorted(files(labels)) == LABELS
    for name in LABELS:
        one, other = nib.load(labels / name), nib.load(whole / "labels" / name)
        assert np.array_equal(one.dataobj, other.dataobj) and np.array_equal(one.affine, other.affine), name


def made_again(labels: Path, before: Mapping[str, tuple[int, int]]) -> list[str]:
    return [name for name, state in sorted(files(labels).items()) if before.get(name) != state]


def infer(bundle: Bundle, scans: Path, labels: Path, **settings: object) -> Finished:
    return bundle("inference", dataset_dir=scans, output_dir=labels, **settings)


def leave_unfinished(label: Path) -> Path:
    """What a process that is killed while it writes `label` leaves behind."""
    with replacing(label) as unfinished:
        unfinished.write_bytes(b"half a label")
        os.link(unfinished, label.with_name("kept"))
    label.unlink()
    return label.with_name("kept").rename(unfinished)


def test_killed_run_goes_on(trained: Trained, whole: Path, tmp_path: Path):
    labels = tmp_path / "labels"
    process, wait = trained.bundle.start("inference", dataset_dir=whole / "scans", output_dir=labels)
    wait_until(lambda: (labels / LABELS[1]).exists(), process)
    process.kill()
    assert wait().code == -signal.SIGKILL
    before = files(labels)
    done = [name for name in LABELS if name in before]
    assert 2 <= len(done) < len(LABELS)
    assert leave_unfinished(labels / LABELS[-1]).exists()
    cut = labels / done[0]  # as after a crash of the whole machine
    cut.write_bytes(cut.read_bytes()[:-10])

    finished = infer(trained.bundle, whole / "scans", labels, resume="true")
    assert (finished.code, finished.complaints) == (0, [])
    assert f"rank 0 of 1: 6 scans, {len(done) - 1} finished before\n" in finished.out
    equal(labels, whole)
    assert made_again(labels, before) == [LABELS[0], *LABELS[len(done) :]]

    before = files(labels)
    finished = infer(trained.bundle, whole / "scans", labels, resume="true")
    assert (finished.code, finished.complaints) == (0, [])
    assert "6 scans, 6 finished before" in finished.out and files(labels) == before


def test_only_labels_of_this_model_and_scan_are_kept(trained: Trained, scans: Path, labels: Path):
    """A scan that was replaced, a label of another tool; then another setting, under which none is."""
    os.utime(scans / "c.nii.gz")
    foreign = nib.load(labels / "d_seg.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(foreign.dataobj), foreign.affine), labels / "d_seg.nii.gz")
    before = files(labels)
    finished = infer(trained.bundle, scans, labels, resume="true")
    assert finished.code == 0 and "6 scans, 4 finished before" in finished.out
    assert made_again(labels, before) == ["c_seg.nii.gz", "d_seg.nii.gz"]

    before = files(labels)
    finished = infer(trained.bundle, scans, labels, resume="true", **{"model::window": "[-100,240]"})
    assert finished.code == 0 and "finished before" not in finished.out
    assert made_again(labels, before) == LABELS


def test_without_resume_all_labels_are_made_again(trained: Trained, whole: Path, labels: Path):
    before = files(labels)
    finished = infer(trained.bundle, whole / "scans", labels)
    assert finished.code == 0 and "6 finished before; they are made again, --resume true would keep" in finished.out
    assert made_again(labels, before) == LABELS
    equal(labels, whole)


# ---- several processes


def test_jobs_of_an_array_share_the_scans(trained: Trained, whole: Path, tmp_path: Path):
    """Without torchrun: nothing but the two variables."""
    settings = {"dataset_dir": whole / "scans", "output_dir": tmp_path}
    jobs = [{"RANK": str(rank), "WORLD_SIZE": "4"} for rank in range(4)]
    started = [trained.bundle.start("inference", OVERLAY, env=job, **settings) for job in jobs]
    finished = [wait() for _, wait in started]
    assert [(f.code, f.complaints) for f in finished] == [(0, [])] * 4
    for rank, count in enumerate((2, 2, 1, 1)):
        assert f"rank {rank} of 4: {count} scans, 0 finished before" in finished[rank].out
        assert finished[rank].out.count(" -> ") == count
    equal(tmp_path, whole)


def test_job_without_a_number(trained: Trained, whole: Path, tmp_path: Path):
    settings = {"dataset_dir": whole / "scans", "output_dir": tmp_path}
    finished = trained.bundle.start("inference", OVERLAY, env={"RANK": "4", "WORLD_SIZE": "4"}, **settings)[1]()
    assert finished.code == 1 and len(finished.complaints) == 1
    assert "error: expected RANK from 0 to WORLD_SIZE - 1 in the environment, got RANK='4'" in finished.err


def test_processes_wait_for_each_other(launch: Launch, trained: Trained, scans: Path, tmp_path: Path):
    """The first has nothing but a broken scan and ends with an error; the second has its label all the same."""
    for scan in [*SCANS[2:], "a/scan.nii.gz"]:
        (scans / scan).unlink()
    shutil.rmtree(scans / "s")
    (scans / "b" / "scan.nii.gz").rename(scans / "whole.nii.gz")
    (scans / "b" / "scan.nii.gz").write_bytes(b"")
    finished = launch(trained.bundle, "inference", OVERLAY, dataset_dir=scans, output_dir=tmp_path / "labels")
    assert any(f.code != 0 for f in finished)
    assert f"error: cannot read '{scans}/b/scan.nii.gz'" in "".join(f.err for f in finished)
    assert list(files(tmp_path / "labels")) == ["whole_seg.nii.gz"]


# ---- broken scans


def spoil(scans: Path) -> tuple[Path, Path]:
    """The first scan is cut off, the fourth is a picture."""
    cut, flat = scans / "a" / "scan.nii.gz", scans / "d.nii.gz"
    cut.write_bytes(cut.read_bytes()[:1000])
    nib.save(nib.Nifti1Image(np.zeros((4, 4), np.int16), np.eye(4)), flat)
    return cut, flat


def test_broken_scans_do_not_stop_the_others(trained: Trained, whole: Path, scans: Path):
    """The labels are written into a sub-folder of the scans, which the second run does not take for scans."""
    labels, (cut, flat) = scans / "labels", spoil(scans)
    finished = infer(trained.bundle, scans, labels)
    assert finished.code == 1 and len(finished.complaints) == 1
    message = finished.complaints[0]
    assert message.startswith(f"error: 2 of 6 scans have no label, the first: cannot read '{cut}': ")
    assert message.endswith("; repair or remove them and add --resume true to segment only these")
    assert f"[1/6] no label: cannot read '{cut}'" in finished.out and "[6/6] " in finished.out
    assert f"\n  image '{flat}' must be one 3-D volume" in finished.out.split("2 of 6 scans have no label:")[1]
    assert sorted(files(labels)) == GOOD

    before = files(labels)
    for scan in (cut, flat):
        shutil.copy(whole / "scans" / scan.relative_to(scans), scan)
    finished = infer(trained.bundle, scans, labels, resume="true")
    assert finished.code == 0 and "6 scans, 4 finished before" in finished.out
    equal(labels, whole)
    assert made_again(labels, before) == ["a/scan_seg.nii.gz", "d_seg.nii.gz"]


def test_broken_scans_that_workers_read(
    trained: Trained, scans: Path, tmp_path: Path, in_process: Callable[..., ConfigWorkflow]
):
    """What a worker raises comes as text."""
    cut, _ = spoil(scans)
    settings = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "labels"), "num_workers": 2}
    workflow = in_process(trained.bundle, "inference", **settings)
    workflow.initialize()
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    assert (user_message(error.value) or "").startswith(f"2 of 6 scans have no label, the first: cannot read '{cut}'")
    assert sorted(files(tmp_path / "labels")) == GOOD
