"""Loading of Meta's checkpoints into networks of other sizes and class counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samora_monai.checkpoints import load_sam
from samora_monai.networks import LEVELS, Segmenter, build_segmenter
from tests.tiny import TINY, randomise, refused, tiny, untouched

ENCODER = {"depth": 3, "global_attn_indexes": (0, 2)}
TABLES = [f"image_encoder.blocks.{i}.attn.rel_pos_{axis}" for i in (0, 2) for axis in "hw"]
PER_CLASS = [
    "mask_decoder.mask_tokens.weight",
    "mask_decoder.iou_prediction_head.layers.2.weight",
    "mask_decoder.iou_prediction_head.layers.2.bias",
]


def hypernetworks(*indexes: int) -> list[str]:
    return [
        f"mask_decoder.output_hypernetworks_mlps.{i}.layers.{j}.{leaf}"
        for i in indexes
        for j in range(3)
        for leaf in ("weight", "bias")
    ]


@pytest.fixture(scope="module")
def sam() -> dict[str, torch.Tensor]:
    """The state dict of a small SAM for 1024."""
    net = tiny(1024, 3, 4, experts=(), encoder=ENCODER)
    randomise(net, 1)
    return {key: value for key, value in net.state_dict().items() if not key.startswith("pixel_")}


def resized(values: np.ndarray, size: int) -> np.ndarray:
    """Linear along the first axis, sample by sample: centres at (i + 1/2) / size, the borders repeated."""
    rows = []
    for i in range(size):
        position = min(max((i + 0.5) * len(values) / size - 0.5, 0), len(values) - 1)
        low = int(position)
        high = min(low + 1, len(values) - 1)
        rows.append((1 - position + low) * values[low] + (position - low) * values[high])
    return np.stack(rows)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 9])
@pytest.mark.parametrize("image_size", [224, 512, 1024])
def test_what_is_copied_resized_kept_and_dropped(image_size, num_classes, sam):
    net = tiny(image_size, 1, num_classes, experts=LEVELS, fusion="attention", encoder=ENCODER)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    report = load_sam(net, sam)
    after = {key: value.numpy() for key, value in net.state_dict().items()}

    changed = [] if num_classes == 4 else PER_CLASS
    new = hypernetworks(*range(4, num_classes))
    superfluous = hypernetworks(*range(num_classes, 4))
    moved = [] if image_size == 1024 else ["image_encoder.pos_embed", *TABLES]
    assert sorted(report.kept) == sorted(changed + new)
    assert sorted(report.dropped) == sorted(changed + superfluous)
    assert sorted(report.resized) == sorted(moved)
    ours = [key for key in before if ".experts." in key or ".hl_attn." in key or key.startswith("pixel_")]
    assert sorted(report.copied) == sorted(set(before) - set(ours) - set(report.kept) - set(moved))

    for key in ours + report.kept:
        assert np.array_equal(after[key], before[key].numpy()), key
    for key in report.copied:
        assert np.array_equal(after[key], sam[key].numpy()), key
    grid = image_size // 16
    for key in moved[1:]:
        np.testing.assert_allclose(after[key], resized(sam[key].numpy(), 2 * grid - 1), rtol=0, atol=2e-5)
    if moved:
        rows = resized(sam["image_encoder.pos_embed"][0].numpy(), grid)  # [grid, 64, C]
        expected = resized(rows.swapaxes(0, 1), grid).swapaxes(0, 1)
        np.testing.assert_allclose(after["image_encoder.pos_embed"][0], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_other_precision(dtype, sam, tmp_path):
    """Weights are converted, and resized in the precision of the network."""
    torch.save({"model": {key: value.to(dtype) for key, value in sam.items()}}, tmp_path / "sam.pth")
    rounded = {key: value.to(dtype).float() for key, value in sam.items()}
    nets = [tiny(224, 1, 3, encoder=ENCODER) for _ in range(2)]
    load_sam(nets[0], tmp_path / "sam.pth")
    load_sam(nets[1], rounded)
    first, second = (net.state_dict() for net in nets)
    for key, value in first.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, second[key]), key


def test_the_same_network_again_needs_nothing_else(sam):
    net = tiny(1024, 3, 4, experts=(), encoder=ENCODER)
    report = load_sam(net, sam)
    assert sorted(report.copied) == sorted(sam)
    assert (report.resized, report.kept, report.dropped) == ([], [], [])


@pytest.mark.parametrize(
    "key",
    [
        "image_encoder.pos_embed",
        "image_encoder.blocks.2.attn.rel_pos_w",
        "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.mask_tokens.weight",
        "mask_decoder.iou_prediction_head.layers.2.bias",
        "mask_decoder.output_hypernetworks_mlps.0.layers.0.weight",
        "mask_decoder.output_hypernetworks_mlps.3.layers.2.bias",
    ],
)
def test_a_missing_tensor_is_never_left_at_random(key, sam):
    net = tiny(224, 1, 9, encoder=ENCODER)
    with refused(key, "missing"), untouched(net):
        load_sam(net, {k: value for k, value in sam.items() if k != key})


def test_a_superfluous_tensor_is_refused(sam):
    net = tiny(224, 1, 9, encoder=ENCODER)
    with refused("1 keys not expected (image_encoder.cls_token)"), untouched(net):
        load_sam(net, sam | {"image_encoder.cls_token": torch.zeros(1)})


def test_a_windowed_table_is_not_resized(sam):
    net = tiny(224, 1, 9, encoder=ENCODER)
    key = "image_encoder.blocks.1.attn.rel_pos_h"
    with refused(key, "[27, 16]", "[5, 16]"), untouched(net):
        load_sam(net, sam | {key: torch.zeros(27, 16)})


@pytest.mark.parametrize(("other", "words"), [({"depth": 4}, "blocks.3"), ({"embed_dim": 64}, "[1, 64, 64, 32]")])
def test_another_encoder_is_refused(other, words, sam):
    net = tiny(224, 1, 9, encoder=ENCODER | other)
    with refused(words, "the network is ViT"), untouched(net):
        load_sam(net, sam)


def test_the_preset_of_another_encoder_is_named(sam):
    """The shapes of Meta's vit_l, without its memory, offered to a vit_b."""
    nets: list[Segmenter] = []
    with torch.device("meta"):
        nets.extend(build_segmenter(name, 1024, num_classes=4, experts=()) for name in ("vit_b", "vit_l"))
    state = {key: value for key, value in nets[1].state_dict().items() if not key.startswith("pixel_")}
    with refused("image_encoder.blocks.12.", "the network is vit_b, the file is of vit_l"):
        load_sam(nets[0], state)


def test_a_file_of_something_else_is_refused(sam):
    net = build_segmenter(TINY, 64)
    with refused("keys missing", "not expected (fc.weight)", "no known encoder; give Meta's file"), untouched(net):
        load_sam(net, {"fc.weight": torch.zeros(2, 2)})
