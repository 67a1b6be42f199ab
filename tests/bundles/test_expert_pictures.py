"""Pictures of what an expert learned: `inference` of the expert bundles through their command line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

from samora_monai.networks import LEVELS
from tests.bundles.command_line import Bundle, files, refused
from tests.bundles.conftest import TrainedExpert
from tests.bundles.weights import write_expert, write_sam

Experts = dict[str, TrainedExpert]
RESULTS = {
    "image": r"slice \d+ like (more/)?phantom_00[34] slice \d+ \S+.*",
    "patch": r"expert moves tokens by \d+% of their spread; .*",
    "pixel": r"PSNR \S+ -> \S+ dB, SSIM \S+ -> \S+",
}


@pytest.mark.parametrize("level", LEVELS)
def test_pictures_of_what_was_learned(experts: Experts, phantoms: Path, sam: Path, tmp_path: Path, level: str):
    """A PNG and a log line per case, also in sub-folders, without repeating a setting of the training."""
    scans, out = tmp_path / "scans", tmp_path / "out"
    (scans / "more").mkdir(parents=True)
    cases = {"phantom_003": "phantom_003.nii.gz", "more/phantom_004": "more/phantom_004.nii.gz"}
    for file in cases.values():
        shutil.copy(phantoms / "imagesVal" / Path(file).name, scans / file)
    finished = experts[level].bundle("inference", dataset_dir=scans, output_dir=out, sam_checkpoint=sam)
    assert (finished.code, finished.complaints) == (0, [])
    found = re.findall(r"^\[(\d)/2\] (\S+) -> (\S+)  \d+\.\d s  (.*)$", finished.out, re.MULTILINE)
    assert sorted(found) == found and len(found) == 2
    assert {scan: picture for _, scan, picture, _ in found} == {
        str(scans / file): str(out / f"{case}.png") for case, file in cases.items()
    }
    for *_, result in found:
        assert re.fullmatch(RESULTS[level], result), result
    assert {str(path.relative_to(out)) for path in out.rglob("*.*")} == {f"{case}.png" for case in cases}
    for case in cases:
        with Image.open(out / f"{case}.png") as picture:
            assert picture.format == "PNG" and min(picture.size) > 100
            low, high = picture.convert("L").getextrema()
            assert high - low > 200  # something is drawn


@pytest.mark.parametrize("level", LEVELS)
def test_inference_has_monais_properties(
    experts: Experts, phantoms: Path, sam: Path, in_process: Callable[..., ConfigWorkflow], tmp_path: Path, level: str
):
    scans, out = str(phantoms / "imagesVal"), str(tmp_path)
    workflow = in_process(
        experts[level].bundle, "inference", dataset_dir=scans, output_dir=out, sam_checkpoint=str(sam)
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.finalize()


# ---- mistakes


@pytest.mark.parametrize("level", LEVELS)
def test_no_expert(expert_bundle: Callable[..., Bundle], phantoms: Path, sam: Path, tmp_path: Path, level: str):
    finished = expert_bundle(level)("inference", dataset_dir=phantoms, output_dir=tmp_path / "out", sam_checkpoint=sam)
    refused(finished, f"no {level} expert '", "models/expert.pt'", "run training", "--expert FILE")
    assert files(tmp_path / "out") == {}


@pytest.mark.parametrize("level", LEVELS)
def test_another_base(experts: Experts, phantoms: Path, tmp_path: Path, level: str):
    other = write_sam(tmp_path / "other.pth", seed=7)
    finished = experts[level].bundle(
        "inference", dataset_dir=phantoms, output_dir=tmp_path / "out", sam_checkpoint=other
    )
    refused(finished, "'expert.pt' was made for base_sha256", "load the SAM checkpoint it was trained on")
    assert files(tmp_path / "out") == {}


def test_expert_of_another_level(experts: Experts, phantoms: Path, sam: Path, tmp_path: Path):
    write_expert(tmp_path / "expert.pt", sam, "pixel")
    settings = {"expert": tmp_path / "expert.pt", "output_dir": tmp_path / "out", "sam_checkpoint": sam}
    finished = experts["patch"].bundle("inference", dataset_dir=phantoms, **settings)
    refused(finished, "'expert.pt' is of level pixel; expected one of level patch")
    assert files(tmp_path / "out") == {}


def test_no_decoder(experts: Experts, phantoms: Path, sam: Path, tmp_path: Path):
    settings = {"decoder": tmp_path / "decoder.pt", "output_dir": tmp_path / "out", "sam_checkpoint": sam}
    finished = experts["pixel"].bundle("inference", dataset_dir=phantoms, **settings)
    refused(finished, f"no decoder '{tmp_path}/decoder.pt'", "comes with the pixel expert", "--decoder")
    assert files(tmp_path / "out") == {}
