"""Teacher files, and the refusal of missing and wrong ones."""

from __future__ import annotations

import json

import pytest
import torch

from samora_monai import __version__
from samora_monai.checkpoints import save_expert
from samora_monai.checkpoints.files import sha256_of
from samora_monai.errors import MissingFileError
from samora_monai.pretraining.mae import MAETeacher
from samora_monai.pretraining.simclr import SimCLRTeacher
from samora_monai.pretraining.teacher import Teacher, read_teacher, save_teacher
from tests.pretraining.small import MAE, SIMCLR
from tests.tiny import image, randomise, refused, tiny, untouched


def simclr(seed: int = 0, **sizes) -> SimCLRTeacher:
    net = SimCLRTeacher(SIMCLR | sizes)
    randomise(net, seed)
    return net


def mae(seed: int = 0, **sizes) -> MAETeacher:
    net = MAETeacher(MAE | sizes)
    randomise(net, seed)
    return net


@pytest.mark.parametrize("build", [simclr, mae])
@torch.no_grad()
def test_a_loaded_teacher_computes_the_same_features(tmp_path, build):
    teacher, x = build(1), image(2, 1, 40, 40)
    if build is simclr:
        teacher.train()(x)  # moves the BatchNorm statistics
    save_teacher(teacher, tmp_path / "teacher.pt", images=7, epochs=2.5, started_from=["r50_2x_sk1.pth"])
    for load in (read_teacher, Teacher.load_weights):
        net = build(2)
        report = load(net, str(tmp_path / "teacher.pt"))
        assert report.copied == list(net.state_dict()) and not report.kept and not report.dropped
        assert torch.equal(net.eval()(x), teacher.eval()(x))


def test_the_meta_of_a_file_describes_its_teacher(tmp_path):
    teacher = simclr()
    save_teacher(teacher, tmp_path / "teacher.pt", images=7, epochs=2)
    content = torch.load(tmp_path / "teacher.pt", weights_only=True)
    assert json.loads(content["meta"]) == {
        "kind": "teacher",
        "format_version": 1,
        "method": "simclr",
        "preset": "ResNet 8 wide, 2-1-1-1 blocks",
        "sha256": sha256_of(teacher.state_dict()),
        "package_version": __version__,
        "images": 7,
        "epochs": 2,
    }
    with pytest.raises(AssertionError, match="method"):
        save_teacher(teacher, tmp_path / "teacher.pt", method="mae")


@pytest.mark.parametrize("source", [None, "none", ""])
@pytest.mark.parametrize(("build", "public"), [(simclr, "r50_2x_sk1.pth"), (mae, "mae_pretrain_vit_large_full.pth")])
def test_a_missing_teacher_is_refused_with_instructions(build, public, source):
    words = ("a random teacher teaches nothing", "run teacher", "--teacher_checkpoint FILE", public)
    with refused("was given", *words, error=MissingFileError):
        read_teacher(build(), source)
    with refused("'nowhere/teacher.pt'", *words, error=MissingFileError):
        read_teacher(build(), "nowhere/teacher.pt")


def test_a_teacher_of_the_other_method_or_size_is_refused(tmp_path):
    save_teacher(simclr(), tmp_path / "simclr.pt")
    save_teacher(mae(), tmp_path / "mae.pt")
    for net, file, words in (
        (mae(), "simclr.pt", ("is of method SimCLR", "expected one of MAE")),
        (simclr(), "mae.pt", ("is of method MAE", "expected one of SimCLR")),
        (simclr(width=16), "simclr.pt", ("ResNet 8 wide", "ResNet 16 wide")),
        (mae(depth=1), "mae.pt", ("2 deep", "1 deep")),
        (MAETeacher("tiny"), "mae.pt", ("ViT 32 wide", "the network has tiny")),
    ):
        with untouched(net), refused(f"'{file}'", *words):
            read_teacher(net, str(tmp_path / file))


def test_damaged_and_other_files_are_refused(tmp_path):
    path = tmp_path / "teacher.pt"
    save_teacher(mae(), path)
    content = torch.load(path, weights_only=True)
    net = mae(1)
    with untouched(net):
        content["state_dict"]["norm.bias"][0] += 1
        torch.save(content, path)
        with refused("'teacher.pt' is damaged", "checksum"):
            read_teacher(net, str(path))
        torch.save(content | {"meta": json.dumps(json.loads(content["meta"]) | {"format_version": 2})}, path)
        with refused("format 2, expected 1", "update samora_monai"):
            read_teacher(net, str(path))
        path.write_bytes(path.read_bytes()[:100])
        with refused("damaged or no PyTorch file"):
            read_teacher(net, str(path))
        save_expert(tiny(), tmp_path / "expert.pt", "task")
        with refused("'expert.pt' is an expert file", "teacher file"):
            read_teacher(net, str(tmp_path / "expert.pt"))
