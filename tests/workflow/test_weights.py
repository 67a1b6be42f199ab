"""The weights that a training starts from, and those that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from samora_monai.checkpoints import save_hsam, save_samed
from samora_monai.data import ScanScaling
from samora_monai.errors import MissingFileError
from samora_monai.networks import LEVELS, Segmenter, build_segmenter
from samora_monai.pretraining import MAETeacher
from samora_monai.workflow.weights import load_base, load_pretrained, load_teacher, start_teacher
from tests.bundles.weights import write_expert, write_sam
from tests.tiny import IDENTITY, randomise, refused, untouched

NOTHING = [None, "", "none", "None", "NULL"]


def build(**settings: Any) -> Segmenter:
    """The preset `tiny`, as new."""
    return build_segmenter(**{"encoder": "tiny", "image_size": 64, "num_classes": 3} | settings)


def write_lora(path: Path, decoder: str) -> Segmenter:
    """A file of SAMed or H-SAM, of the size that H-SAM has, and the network that it was written from."""
    net = build(image_size=224, decoder=decoder, **IDENTITY)
    randomise(net)
    (save_hsam if decoder == "hierarchical" else save_samed)(net, path)
    return net


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_sam(tmp_path_factory.mktemp("sam") / "sam.pth"))


@pytest.fixture(scope="module")
def experts(sam: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("experts")
    return {level: str(write_expert(folder / f"{level}.pt", Path(sam), level)) for level in LEVELS}


# ---- what is loaded


@pytest.mark.parametrize("nothing", NOTHING)
def test_files_may_be_left_out(nothing: str | None):
    for decoder in ("sam", "hierarchical"):
        net = build(decoder=decoder)
        with untouched(net):
            experts = dict.fromkeys(LEVELS, nothing)
            assert load_pretrained(net, nothing, samed=nothing, hsam=nothing, experts=experts) == []


@pytest.mark.parametrize("nothing", NOTHING)
def test_a_teacher_may_start_at_random_but_not_teach(nothing: str | None):
    teacher = MAETeacher("tiny")
    with untouched(teacher):
        assert start_teacher(teacher, nothing) is None
        with refused("no MAE teacher was given", "--teacher_checkpoint FILE", error=MissingFileError):
            load_teacher(teacher, nothing)


@pytest.mark.parametrize("nothing", NOTHING)
def test_an_expert_needs_a_base(nothing: str | None):
    with refused("an expert is made for one base", "--sam_checkpoint FILE", error=MissingFileError):
        load_base(build(), nothing)


@pytest.mark.parametrize(("decoder", "argument"), [("sam", "samed"), ("hierarchical", "hsam")])
def test_lora_file_on_top_of_sam(
    decoder: str, argument: str, sam: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "samora_monai")
    source = write_lora(tmp_path / "lora.pth", decoder)
    net = build(decoder=decoder)
    reports = load_pretrained(net, sam, **{argument: str(tmp_path / "lora.pth")})
    assert [line.split(":")[0] for line in caplog.messages] == [
        "loaded 'sam.pth'",
        "loaded 'lora.pth'",
    ]
    ours, theirs = net.state_dict(), source.state_dict()
    assert [key for key in reports[1].copied if not torch.equal(ours[key], theirs[key])] == []
    assert "image_encoder.patch_embed.proj.weight" in reports[0].copied
    assert set(reports[0].copied) - set(reports[1].copied) > {"image_encoder.patch_embed.proj.weight"}
    assert not net.pixel_mean.any()


@pytest.mark.parametrize("decoder", ["sam", "hierarchical"])
def test_experts_of_a_fusion(decoder: str, sam: str, experts: dict[str, str]):
    net = build(experts=LEVELS, fusion="attention", decoder=decoder)
    reports = load_pretrained(net, sam, experts=experts)
    assert [report.source for report in reports] == ["'sam.pth'", "'image.pt'", "'patch.pt'", "'pixel.pt'"]
    for level, path in experts.items():
        stored = torch.load(path, weights_only=True)["state_dict"]["blocks.0.linear_b_v.weight"]
        ours = net.state_dict()[f"image_encoder.blocks.0.attn.experts.{level}.linear_b_v.weight"]
        assert torch.equal(ours, stored) and stored.any()


def test_only_the_levels_that_are_fused(sam: str, experts: dict[str, str]):
    net = build(experts=["image", "pixel"], fusion="attention")
    given = {"image": experts["image"], "patch": None, "pixel": experts["pixel"]}
    assert len(load_pretrained(net, sam, experts=given)) == 3


def test_experts_of_another_intensity_are_used_with_a_warning(
    sam: str, experts: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Only where both are of MR, which alone has intensities; experts of CT have a window."""
    scaled = {name: ScanScaling("MR", intensity=name) for name in ("percentiles", "slice_zscore")}
    expert = str(write_expert(tmp_path / "e.pt", Path(sam), "patch", scaling=scaled["slice_zscore"]))
    net = build(experts=["patch"])
    for path, scaling in (
        (expert, scaled["slice_zscore"]),
        (expert, ScanScaling()),
        (experts["patch"], scaled["slice_zscore"]),
        (expert, None),
    ):
        load_pretrained(net, sam, experts={"patch": path}, scaling=scaling)
    assert not caplog.messages
    load_pretrained(net, sam, experts={"patch": expert}, scaling=scaled["percentiles"])
    assert caplog.messages == [
        f"the patch expert '{expert}' was trained on MR under --intensity slice_zscore but this run has percentiles, "
        "so that it gets other grey values than it has learned; give --intensity slice_zscore, or train it again"
    ]


# ---- what is refused


def test_sam_is_not_there():
    words = ("no SAM checkpoint 'sam.pth'", "download_large_files", "--sam_checkpoint FILE", "--sam_checkpoint none")
    net = build()
    with refused(*words, error=MissingFileError), untouched(net):
        load_pretrained(net, "sam.pth")


@pytest.mark.parametrize(
    ("encoder", "image_size", "words"),
    [
        ("vit_b", 64, "download sam_vit_b_01ec64.pth with 'python -m samora_monai.download vit_b' ("),
        ("tiny", 64, "(tiny), get the shipped one with 'python -m samora_monai.download tiny', or"),
        (
            "sam2_mini",
            64,
            "give --sam_checkpoint FILE of this encoder (sam2_mini), or take another",
        ),
    ],
)
def test_where_the_base_of_an_encoder_comes_from(encoder: str, image_size: int, words: str):
    with torch.device("meta"):
        net = build_segmenter(encoder, image_size=image_size)
    with refused("no SAM checkpoint 'sam.pth'", words, "download_large_files", error=MissingFileError):
        load_pretrained(net, "sam.pth")


def test_a_fused_expert_has_no_file(sam: str, experts: dict[str, str]):
    net = build(experts=LEVELS, fusion="block")
    with refused("'image' has no file", "--image_expert FILE", "fewer levels in --experts"):
        load_pretrained(net, sam, experts={"image": None, "patch": None, "pixel": None})
    with refused("'patch' has no file", "--patch_expert FILE"):
        load_pretrained(net, sam, experts={"image": experts["image"], "pixel": experts["pixel"]})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"experts": ["lesion"]}, "has 'lesion', which is no level; choose among image, patch, pixel, task"),
        ({"experts": ["image", "organ"]}, "has 'organ', which is no level; choose among image, patch, pixel, task"),
        (
            {"experts": ["task"], "fusion": "block", "fusion_order": ["task"]},
            "has 'task', which is no level that can be fused; choose among image, patch, pixel",
        ),
    ],
)
def test_an_expert_of_no_level(settings: dict[str, Any], words: str, sam: str):
    net = build(**settings)
    with refused("--experts", words), untouched(net):
        load_pretrained(net, sam)


def test_an_expert_that_the_network_does_not_have(sam: str, experts: dict[str, str]):
    with refused("patch.pt was given but --experts is ('task',)", "add 'patch' to it"):
        load_pretrained(build(), sam, experts={"patch": experts["patch"]})


def test_an_expert_of_another_base(experts: dict[str, str], tmp_path: Path):
    net = build(experts=LEVELS, fusion="attention")
    with refused("'image.pt' was made for base_sha256"):
        load_pretrained(net, str(write_sam(tmp_path / "other.pth", seed=1)), experts=experts)


def test_a_lora_file_of_the_other_decoder(sam: str, tmp_path: Path):
    write_lora(tmp_path / "hsam.pth", "hierarchical")
    write_lora(tmp_path / "samed.pth", "sam")
    net = build()
    with refused("hsam.pth was given but --decoder is sam", "add --decoder hierarchical"), untouched(net):
        load_pretrained(net, sam, hsam=str(tmp_path / "hsam.pth"))
    with refused("'hierarchical'", "use a file of H-SAM"):
        load_pretrained(build(decoder="hierarchical"), sam, samed=str(tmp_path / "samed.pth"))
    with refused("'samed.pth'", "expected a LoRA file of H-SAM"):
        load_pretrained(build(decoder="hierarchical"), sam, hsam=str(tmp_path / "samed.pth"))


def test_a_lora_file_of_another_rank(sam: str, tmp_path: Path):
    write_lora(tmp_path / "hsam.pth", "hierarchical")
    with refused("'hsam.pth'", "rank=4", "build the network with these"):
        load_pretrained(build(decoder="hierarchical", rank=5), sam, hsam=str(tmp_path / "hsam.pth"))
    with refused("no checkpoint", "absent.pth", error=MissingFileError):
        load_pretrained(build(decoder="hierarchical"), sam, hsam="absent.pth")
