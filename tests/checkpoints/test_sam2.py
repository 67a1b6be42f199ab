"""Loading of Meta's SAM 2 files, and refusals of the files of another family."""

from __future__ import annotations

import functools
import gzip
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from samora_monai.checkpoints import (
    load_adapter,
    load_expert,
    load_hsam,
    load_sam,
    load_samed,
    save_adapter,
    save_expert,
    save_hsam,
    save_samed,
)
from samora_monai.checkpoints.experts import base_sha256
from samora_monai.networks import LEVELS, Segmenter, build_segmenter
from tests.goldens import SAM2
from tests.tiny import IDENTITY, image, randomise, refused, tiny, tiny_sam2, untouched

PRESETS = ("sam2_tiny", "sam2_small", "sam2_base_plus", "sam2_large")
FILES = [(preset, version) for preset in PRESETS for version in ("sam2", "sam2.1")]
MEMORY = {
    "memory_attention.norm.weight": (256,),
    "memory_encoder.out_proj.bias": (64,),
    "mask_downsample.weight": (1, 1, 4, 4),
    "maskmem_tpos_enc": (7, 1, 1, 64),
    "no_mem_pos_enc": (1, 1, 256),
    "no_obj_ptr": (1, 256),
    "obj_ptr_proj.layers.0.weight": (256, 256),
    "no_obj_embed_spatial": (1, 64),
    "obj_ptr_tpos_proj.bias": (64,),
}
PER_CLASS = [
    "sam_mask_decoder.mask_tokens.weight",
    "sam_mask_decoder.iou_prediction_head.layers.2.weight",
    "sam_mask_decoder.iou_prediction_head.layers.2.bias",
]


@functools.cache
def layouts() -> dict[str, dict[str, dict[str, list[int]]]]:
    """Shapes of all tensors of Meta's files by preset, version and key."""
    return json.loads(gzip.decompress((SAM2 / "layouts.json.gz").read_bytes()))


@functools.cache
def empty(preset: str) -> Segmenter:
    """A network of Meta's size without memory."""
    with torch.device("meta"):
        return build_segmenter(preset, 224, 3, num_classes=4, experts=())


def file_of(preset: str, version: str) -> dict[str, Any]:
    shapes = layouts()[preset][version]
    return {"model": {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}}


def of_images(key: str) -> bool:
    return key.startswith(("image_encoder.", "sam_prompt_encoder.", "sam_mask_decoder.")) or key == "no_mem_embed"


@pytest.mark.parametrize(("preset", "version"), FILES)
def test_each_preset_takes_every_tensor_of_its_files_but_the_memory(preset, version):
    net, shapes = empty(preset), layouts()[preset][version]
    report = load_sam(net, file_of(preset, version))
    images = {key for key in shapes if of_images(key)}
    assert set(report.copied) == images == {key for key in net.state_dict() if not key.startswith("pixel_")}
    assert set(report.dropped) == set(shapes) - images
    assert report.kept == report.resized == []
    numbers = {key: tuple(value.shape) for key, value in net.state_dict().items() if key in images}
    assert numbers == {key: tuple(shape) for key, shape in shapes.items() if key in images}


@pytest.mark.parametrize("made_for", PRESETS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_file_of_another_size_is_refused(preset, made_for):
    if preset == made_for:
        return
    words = ("the given state dict does not fit", f"the network is {preset}, the file is of {made_for}")
    with refused(*words):
        load_sam(empty(preset), file_of(made_for, "sam2.1"))


def hypernetworks(*indexes: int) -> list[str]:
    return [
        f"sam_mask_decoder.output_hypernetworks_mlps.{i}.layers.{j}.{leaf}"
        for i in indexes
        for j in range(3)
        for leaf in ("weight", "bias")
    ]


def mini(num_classes: int = 4, **settings: Any) -> Segmenter:
    return build_segmenter("sam2_mini", 64, 3, num_classes, **settings)


@pytest.fixture(scope="module")
def meta() -> dict[str, Tensor]:
    """The state dict of a `sam2_mini` as Meta would write it, memory included."""
    net = mini(experts=())
    randomise(net, 1)
    state = {key: value for key, value in net.state_dict().items() if not key.startswith("pixel_")}
    return state | {key: torch.randn(shape) for key, shape in MEMORY.items()}


def test_a_file_is_read_and_the_memory_is_named(meta, tmp_path):
    torch.save({"model": meta}, tmp_path / "sam2.1_hiera_mini.pt")
    net = mini(experts=())
    report = load_sam(net, tmp_path / "sam2.1_hiera_mini.pt")
    assert sorted(report.dropped) == sorted(MEMORY)
    assert sorted(report.copied) == sorted(meta.keys() - MEMORY.keys())
    assert (report.kept, report.resized) == ([], [])
    assert str(report).startswith("'sam2.1_hiera_mini.pt': copied ")
    assert "; dropped 9 (memory_attention.norm.weight, " in str(report)
    assert all(torch.equal(net.state_dict()[key], meta[key]) for key in report.copied)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 9])
def test_mask_tokens_beyond_four_keep_their_values(num_classes, meta):
    net = mini(num_classes, experts=LEVELS, fusion="attention", fusion_width=16)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    report = load_sam(net, {"model": meta})
    changed = [] if num_classes == 4 else PER_CLASS
    assert sorted(report.kept) == sorted(changed + hypernetworks(*range(4, num_classes)))
    assert sorted(report.dropped) == sorted([*MEMORY, *changed, *hypernetworks(*range(num_classes, 4))])
    after = net.state_dict()
    ours = [key for key in before if ".experts." in key or ".hl_attn." in key or key.startswith("pixel_")]
    assert set(report.copied) == before.keys() - {*ours, *report.kept}
    assert all(torch.equal(after[key], before[key]) for key in [*ours, *report.kept])
    assert all(torch.equal(after[key], meta[key]) for key in report.copied)


def test_a_file_fits_every_input_size_without_resizing(meta):
    for size in (32, 96, 224):
        report = load_sam(build_segmenter("sam2_mini", size), {"model": meta})
        assert report.resized == []


def test_with_the_hierarchical_decoder_the_second_keeps_its_values(meta):
    net = mini(3, decoder="hierarchical", class_balanced_attention=True)
    report = load_sam(net, {"model": meta})
    second = {key for key in net.state_dict() if key.startswith("mask_decoder2.")}
    assert second - set(report.kept) == {key for key in second if ".class_attention." in key}
    assert set(report.kept) - second == set(PER_CLASS)


@pytest.mark.parametrize(
    "key",
    [
        "no_mem_embed",
        "image_encoder.trunk.pos_embed_window",
        "image_encoder.trunk.blocks.1.proj.weight",
        "image_encoder.neck.convs.3.conv.bias",
        "sam_prompt_encoder.no_mask_embed.weight",
        "sam_mask_decoder.obj_score_token.weight",
        "sam_mask_decoder.conv_s1.weight",
        "sam_mask_decoder.mask_tokens.weight",
        "sam_mask_decoder.output_hypernetworks_mlps.3.layers.2.bias",
    ],
)
def test_a_missing_tensor_is_never_left_at_random(key, meta):
    net = mini(9)
    with refused(key, "missing"), untouched(net):
        load_sam(net, {"model": {k: value for k, value in meta.items() if k != key}})


@pytest.mark.parametrize("key", ["image_encoder.trunk.cls_token", "no_mem_extra", "memory", "pixels"])
def test_a_superfluous_tensor_is_refused(key, meta):
    """Memory is dropped by its names, not by whatever begins like them."""
    net = mini(9)
    with refused(f"1 keys not expected ({key})"), untouched(net):
        load_sam(net, {"model": meta | {key: torch.zeros(1)}})


def test_positions_of_another_grid_are_refused(meta):
    net, key = mini(9), "image_encoder.trunk.pos_embed"
    with refused(key, "[1, 32, 14, 14], expected [1, 32, 7, 7]"), untouched(net):
        load_sam(net, {"model": meta | {key: torch.zeros(1, 32, 14, 14)}})


def test_a_file_of_sam_and_a_network_of_sam2_are_refused_by_both_names(meta):
    with torch.device("meta"):
        sam = build_segmenter("vit_b", 1024, 3, num_classes=4, experts=())
    state = {key: value for key, value in sam.state_dict().items() if not key.startswith("pixel_")}
    net = mini()
    with refused("the network is sam2_mini, the file is of vit_b; give Meta's file"), untouched(net):
        load_sam(net, state)
    with refused("the network is vit_b, the file is of sam2_mini; give Meta's file"):
        load_sam(sam, {"model": meta})
    with refused("the network is vit_b, the file is of sam2_large"):
        load_sam(sam, file_of("sam2_large", "sam2.1"))


@pytest.mark.parametrize("statistics", [False, True])
def test_a_file_of_medsam_is_one_of_sam(statistics, tmp_path):
    """`medsam_vit_b.pth` is SAM's plain state dict; pixel statistics in such a file do not replace the network's."""
    medsam = tiny(1024, 3, 4, experts=())
    randomise(medsam, 1)
    state = {k: v for k, v in medsam.state_dict().items() if statistics or not k.startswith("pixel_")}
    if statistics:
        state |= {"pixel_mean": torch.full((3, 1, 1), 120.0), "pixel_std": torch.full((3, 1, 1), 58.0)}
    torch.save(state, tmp_path / "medsam_vit_b.pth")
    net = tiny(64, 3, 9)
    mean = net.pixel_mean.clone()
    report = load_sam(net, tmp_path / "medsam_vit_b.pth")
    assert torch.equal(net.pixel_mean, mean)
    assert "image_encoder.blocks.1.attn.qkv.weight" in report.copied
    assert sorted(report.kept) == sorted(
        [name.removeprefix("sam_") for name in [*PER_CLASS, *hypernetworks(*range(4, 9))]]
    )
    assert set(report.resized) == {f"image_encoder.{name}" for name in net.image_encoder.resized}


def test_an_expert_comes_back_in_another_network_on_the_same_base(meta, tmp_path):
    first = mini(experts=("patch",), rank=2)
    load_sam(first, {"model": meta})
    randomise(first.image_encoder.trunk.blocks[1].attn.experts, 3)
    save_expert(first, tmp_path / "patch.pt", "patch")
    second = build_segmenter("sam2_mini", 96, 1, 9, experts=LEVELS, rank=2, fusion="attention", fusion_width=16)
    load_sam(second, {"model": meta})
    assert base_sha256(second) == base_sha256(first)
    report = load_expert(second, tmp_path / "patch.pt", "patch")
    assert len(report.copied) == 8 * 4
    state, expected = second.state_dict(), first.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in report.copied)
    file = torch.load(tmp_path / "patch.pt", weights_only=True)
    assert json.loads(file["meta"])["preset"] == "sam2_mini"
    assert file["state_dict"]["blocks.1.linear_b_q.weight"].shape == (64, 2)


def test_an_adapter_comes_back(meta, tmp_path):
    settings: dict[str, Any] = {"experts": LEVELS, "fusion": "block", "fusion_width": 16}
    first, second = mini(5, **settings), mini(5, **settings)
    for net in (first, second):
        load_sam(net, {"model": meta})
    with torch.no_grad():
        first.no_mem_embed += 1
        for name, parameter in first.named_parameters():
            if ".experts." in name or ".hl_attn." in name:
                parameter.normal_(std=0.1)
    save_adapter(first, tmp_path / "adapter.pt")
    load_adapter(second, tmp_path / "adapter.pt")
    x = image(1, 3, 64, 64)
    assert torch.equal(first.eval()(x), second.eval()(x))


@pytest.mark.parametrize(("made", "other"), [("tiny", "sam2_mini"), ("sam2_mini", "tiny")])
def test_expert_and_adapter_files_of_the_other_family_are_refused(made, other, tmp_path):
    settings: dict[str, Any] = {"experts": ("image",)}
    first, second = (build_segmenter(preset, 64, **settings) for preset in (made, other))
    save_expert(first, tmp_path / "image.pt", "image")
    save_adapter(first, tmp_path / "adapter.pt")
    words = (f"was made for preset {made} but the network has {other}",)
    with refused("'image.pt'", *words), untouched(second):
        load_expert(second, tmp_path / "image.pt", "image")
    with refused("'adapter.pt'", *words), untouched(second):
        load_adapter(second, tmp_path / "adapter.pt")


@pytest.mark.parametrize("decoder", ["sam", "hierarchical"])
@pytest.mark.parametrize("system", ["SAMed", "H-SAM"])
def test_files_of_samed_and_h_sam_are_refused(system, decoder, tmp_path):
    """With either decoder the reason is SAM 2's encoder."""
    net = tiny_sam2(decoder=decoder, **IDENTITY)
    save, load = {"SAMed": (save_samed, load_samed), "H-SAM": (save_hsam, load_hsam)}[system]
    words = (f"{system}'s files are of SAM's encoder", "the network is SAM 2's; use an adapter file")
    with refused(*words):
        save(net, tmp_path / "lora.pth")
    assert not (tmp_path / "lora.pth").exists()
    save_samed(tiny(**IDENTITY), tmp_path / "samed.pth")
    with refused(*words), untouched(net):
        load(net, tmp_path / "samed.pth")
